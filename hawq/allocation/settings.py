"""What the allocation stage does beside making the plan."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.components import component


@component("allocation/allocation")
@dataclass(frozen=True)
class Allocation:
    """The allocation stage.

    Args:
        sensitivity: a `sensitivity.json` to allocate from, without model and data; None for the run's own analysis.
        frontier_points: budgets at which the frontier is solved, 0 for none.
        confidence_draws: how often the plan is recomputed within the errors of the curvature, 0 for never.

    Raises:
        ValueError: a value out of range.
    """

    sensitivity: str | None = None
    frontier_points: int = 25
    confidence_draws: int = 10

    def __post_init__(self) -> None:
        if self.frontier_points < 0 or self.frontier_points == 1:
            raise ValueError(f"allocation.frontier_points={self.frontier_points} is out of range: give 2 or more, or 0")
        if self.confidence_draws < 0:
            raise ValueError(f"allocation.confidence_draws={self.confidence_draws} is out of range: give 0 or more")
