"""From sensitivities to a plan: which block gets how many bits."""

import logging

from hawq.allocation.allocator import Allocator, Measuring, Scored, check_evaluations, measures_plans
from hawq.allocation.confidence import confidence, is_proven
from hawq.allocation.frontier import Frontier, frontier
from hawq.allocation.hawq_v3 import HawqV3
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.manual import Manual
from hawq.allocation.monotone import Monotone
from hawq.allocation.plan_space import PlanSpace
from hawq.allocation.problem import Group, Problem
from hawq.allocation.settings import Allocation
from hawq.allocation.uniform import UniformBits, direct_baseline
from hawq.records import BitPlan, Sensitivity

__all__ = [
    "Allocation",
    "Allocator",
    "Frontier",
    "Group",
    "HawqV3",
    "IntegerProgram",
    "Manual",
    "Measuring",
    "Monotone",
    "PlanSpace",
    "Problem",
    "Scored",
    "UniformBits",
    "allocate",
    "check_evaluations",
    "confidence",
    "direct_baseline",
    "frontier",
    "is_proven",
    "measures_plans",
]

_log = logging.getLogger(__name__)


def allocate(sensitivity: Sensitivity, allocator: Allocator | None = None) -> BitPlan:
    """The bit plan that an allocator makes from an analysis.

    Args:
        sensitivity: from `analyze`, or from a file.
        allocator: the exact optimum at W-Comp 10.6 unless given.

    A score that predicts no increase at all is reported by one logged warning.

    Raises:
        ValueError: the allocator's limits cannot be met (with the feasible range), or the analysis lacks what it needs.
    """
    allocator = allocator or IntegerProgram()
    plan = allocator.allocate(sensitivity)
    if isinstance(allocator, Scored) and sensitivity.table(plan.score).is_flat:
        _log.warning(
            "every score by %s is zero, as for a network without curvature: the plain error ‖Q(W) − W‖² alone decides "
            "the bits",
            plan.score,
        )
    return plan
