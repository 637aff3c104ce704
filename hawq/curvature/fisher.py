"""Trace of the empirical Fisher matrix: the cheap baseline that needs no second derivative."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hawq.checks import check_range
from hawq.components import component
from hawq.curvature.solver import (
    MOST_READINGS,
    STANDARD,
    SolverDefaults,
    State,
    check_memory_limit,
    check_tolerance,
    mean_and_error,
)
from hawq.records import Estimate


@component("solver/fisher", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class Fisher(SolverDefaults):
    """Tr(F_ii) = mean ‖g_in‖² over samples n, by random signs: E ‖Σ_n ε_n g_in / √N‖² (one backward per draw).

    F = mean of g gᵀ equals the Hessian where the model's probabilities are true, and nowhere else (Kunstner 2019).

    Args:
        tolerance: stops once the standard error of the mean is below tolerance · trace.
        max_draws: most backward passes.
        memory_limit_gib: most memory of the process while it reads; None: a share of what is free at the start.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.1
    max_draws: int = 100
    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        check_memory_limit(self.memory_limit_gib)
        check_range("max_draws", self.max_draws, least=2, most=MOST_READINGS)

    @property
    def name(self) -> str:
        """How results call it."""
        return "fisher"

    @property
    def reads(self) -> str:
        """Sketches s (n_i,) with E ‖s‖² = Tr(F_ii)."""
        return "sketches"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`vector` and `seed` are not used: the operator draws the signs of its samples."""
        return {"vector": vector[:0], "draws": [], "done": False, "converged": False}

    def update(self, state: State, reading: Tensor) -> State:
        """One more draw; `reading` is a sketch (n_i,)."""
        drawn = state | {"draws": [*state["draws"], float(reading.square().sum())]}
        estimate = self.estimates(drawn)["trace"]
        enough = len(drawn["draws"]) > 1 and estimate.error <= self.tolerance * estimate.value
        return drawn | {"converged": enough, "done": enough or len(drawn["draws"]) >= self.max_draws}

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "trace" with the standard error of its mean over draws."""
        value, error = mean_and_error(state["draws"])
        return {"trace": Estimate(value, error, len(state["draws"]), state["converged"], confidence=STANDARD)}
