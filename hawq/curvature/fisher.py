"""Trace of the empirical Fisher matrix: the cheap baseline that needs no second derivative."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hawq.components import component
from hawq.curvature.solver import State, mean_and_error, refuse_memory_limit, refuse_tolerance
from hawq.records import Estimate


@component("solver/fisher", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class Fisher:
    """Tr(F_ii) = mean ‖g_in‖² over samples n, by random signs: E ‖Σ_n ε_n g_in / √N‖² (one backward a draw).

    F = mean of g gᵀ equals the Hessian where the model's probabilities are true, and nowhere else (Kunstner 2019).

    Args:
        tolerance: stops once the standard error of the mean is below tolerance · trace.
        max_draws: most backward passes.
        memory_limit_gib: most memory of the process while it reads; None does not limit it.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.1
    max_draws: int = 100
    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        refuse_tolerance(self.tolerance)
        refuse_memory_limit(self.memory_limit_gib)
        if self.max_draws < 2:
            raise ValueError(f"solver.max_draws={self.max_draws} is out of range: give 2 or more")

    @property
    def name(self) -> str:
        return "fisher"

    @property
    def reads(self) -> str:
        return "sketches"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`vector` and `seed` are not used: the operator draws the signs of its samples."""
        return {"vector": vector[:0], "draws": [], "done": False, "converged": False}

    def update(self, state: State, reading: Tensor) -> State:
        drawn = state | {"draws": [*state["draws"], float(reading.square().sum())]}
        estimate = self.estimates(drawn)["trace"]
        enough = len(drawn["draws"]) > 1 and estimate.error <= self.tolerance * estimate.value
        return drawn | {"converged": enough, "done": enough or len(drawn["draws"]) >= self.max_draws}

    def estimates(self, state: State) -> dict[str, Estimate]:
        value, error = mean_and_error(state["draws"])
        return {"trace": Estimate(value, error, len(state["draws"]), state["converged"])}
