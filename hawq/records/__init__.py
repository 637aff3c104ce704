"""The nouns: frozen records that each stage hands to the next, and that round-trip through JSON."""

from hawq.records.blocks import Block, FloatPart, Normalization, Preprocessing
from hawq.records.conversion import Record, from_dict, to_dict
from hawq.records.derived import MEASURED
from hawq.records.files import PLAN_SCHEMA, SENSITIVITY_SCHEMA, dump_record, read_record, read_sensitivity
from hawq.records.kinds import BIT_WIDTHS, FLOAT_BITS, IMAGE_BITS
from hawq.records.plans import BitPlan, Confidence, Cost, Judgement, LimitUse, Phase, Precision, Searched
from hawq.records.reports import Difference, Measured, ResultRow, RunReport, StageRecord
from hawq.records.scores import (
    ACTIVATIONS,
    BEYOND_CURVATURE,
    KL_AND_TRACE,
    SCORES,
    WEIGHTS,
    WHOLE_PLANS,
    Prediction,
    ScoreTable,
    parts_of,
)
from hawq.records.sensitivity import BlockSensitivity, Estimate, Sensitivity
from hawq.records.validation import (
    Correlation,
    LossIncrease,
    LossIncreases,
    PlanCorrelation,
    PlanOutcome,
    PlanScore,
    Score,
    Validated,
    ValidatedPlans,
)

__all__ = [
    "ACTIVATIONS",
    "BEYOND_CURVATURE",
    "BIT_WIDTHS",
    "FLOAT_BITS",
    "IMAGE_BITS",
    "KL_AND_TRACE",
    "MEASURED",
    "PLAN_SCHEMA",
    "SCORES",
    "SENSITIVITY_SCHEMA",
    "WEIGHTS",
    "WHOLE_PLANS",
    "BitPlan",
    "Block",
    "BlockSensitivity",
    "Confidence",
    "Correlation",
    "Cost",
    "Difference",
    "Estimate",
    "FloatPart",
    "Judgement",
    "LimitUse",
    "LossIncrease",
    "LossIncreases",
    "Measured",
    "Normalization",
    "Phase",
    "PlanCorrelation",
    "PlanOutcome",
    "PlanScore",
    "Precision",
    "Prediction",
    "Preprocessing",
    "Record",
    "ResultRow",
    "RunReport",
    "Score",
    "ScoreTable",
    "Searched",
    "Sensitivity",
    "StageRecord",
    "Validated",
    "ValidatedPlans",
    "dump_record",
    "from_dict",
    "parts_of",
    "read_record",
    "read_sensitivity",
    "to_dict",
]
