"""What the allocation stage does besides making the plan."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.allocation.confidence import MOST_DRAWS
from hawq.allocation.frontier import MOST_POINTS
from hawq.checks import check_range
from hawq.components import component


@component("allocation/allocation")
@dataclass(frozen=True)
class Allocation:
    """The allocation stage.

    Args:
        sensitivity: a `sensitivity.json` to allocate from, without model and data; None for the run's own analysis.
        frontier_points: budgets at which the frontier is solved, at most 1,000; 0 for none.
        confidence_draws: how often the plan is recomputed within the errors of the curvature, at most 10,000; 0 for
            never.

    Raises:
        ValueError: a value out of range.
    """

    sensitivity: str | None = None
    frontier_points: int = 25
    confidence_draws: int = 10

    def __post_init__(self) -> None:
        if self.frontier_points and not 2 <= self.frontier_points <= MOST_POINTS:
            allowed = f"2 or more, at most {MOST_POINTS}, or 0"
            raise ValueError(f"frontier_points={self.frontier_points} is out of range: give {allowed}")
        check_range("confidence_draws", self.confidence_draws, least=0, most=MOST_DRAWS)
