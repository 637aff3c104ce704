"""What quantising truly costs on held-out images, by single blocks and whole plans, and how well scores predict it."""

from typing import TYPE_CHECKING

from hawq.lazy import lazy_names
from hawq.records import ACTIVATIONS, WEIGHTS, Correlation, LossIncrease, LossIncreases, Score, Validated
from hawq.validation.correlation import PLAN_TRUTHS, correlate, correlate_plans
from hawq.validation.files import VALIDATION_SCHEMA, read_validation
from hawq.validation.plans import Plan, plan_of, random_plans, wanted_plans
from hawq.validation.scores import (
    PLAIN_ERROR,
    Compared,
    activation_scores,
    compared_curvature,
    curvature_score,
    gradient_seconds,
    table_score,
)
from hawq.validation.settings import Validation

if TYPE_CHECKING:
    from hawq.validation.increases import loss_increases
    from hawq.validation.outcomes import measure_plans, outcome_of

_HOMES = {"loss_increases": "increases", "measure_plans": "outcomes", "outcome_of": "outcomes"}

__all__ = [
    "ACTIVATIONS",
    "PLAIN_ERROR",
    "PLAN_TRUTHS",
    "VALIDATION_SCHEMA",
    "WEIGHTS",
    "Compared",
    "Correlation",
    "LossIncrease",
    "LossIncreases",
    "Plan",
    "Score",
    "Validated",
    "Validation",
    "activation_scores",
    "compared_curvature",
    "correlate",
    "correlate_plans",
    "curvature_score",
    "gradient_seconds",
    "loss_increases",
    "measure_plans",
    "outcome_of",
    "plan_of",
    "random_plans",
    "read_validation",
    "table_score",
    "wanted_plans",
]


__getattr__ = lazy_names(__name__, _HOMES)
