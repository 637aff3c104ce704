"""From sensitivities to a plan: who gets how many bits."""

from hawq.allocation.allocator import Allocator, Weighted
from hawq.allocation.confidence import confidence, is_proven
from hawq.allocation.frontier import Frontier, frontier
from hawq.allocation.hawq_v3 import HawqV3
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.manual import Manual
from hawq.allocation.monotone import Monotone
from hawq.allocation.settings import Allocation
from hawq.allocation.uniform import UniformBits, direct_baseline
from hawq.records import BitPlan, Sensitivity

__all__ = [
    "Allocation",
    "Allocator",
    "Frontier",
    "HawqV3",
    "IntegerProgram",
    "Manual",
    "Monotone",
    "UniformBits",
    "Weighted",
    "allocate",
    "confidence",
    "direct_baseline",
    "frontier",
    "is_proven",
]


def allocate(sensitivity: Sensitivity, allocator: Allocator | None = None) -> BitPlan:
    """The bit plan that `allocator` (the exact optimum at W-Comp 13.1 unless given) draws from an analysis.

    Raises ValueError, with the feasible range, when the allocator's limits cannot be met.
    """
    return (allocator or IntegerProgram()).allocate(sensitivity)
