"""From sensitivities to a plan: who gets how many bits."""

from hawq.allocation.allocator import Allocator, SizeLimit
from hawq.allocation.manual import Manual
from hawq.allocation.mixed import Mixed
from hawq.allocation.uniform import UniformBits, direct_baseline
from hawq.records import BitPlan, Sensitivity

__all__ = ["Allocator", "Manual", "Mixed", "SizeLimit", "UniformBits", "allocate", "direct_baseline"]


def allocate(sensitivity: Sensitivity, allocator: Allocator | None = None) -> BitPlan:
    """The bit plan that `allocator` (HAWQ's mixed precision at W-Comp 13.1 unless given) draws from an analysis.

    Raises ValueError, with the feasible range, when the allocator's limit cannot be met.
    """
    return (allocator or Mixed()).allocate(sensitivity)
