"""Power iteration (Algorithm 1 of HAWQ, 1905.03696)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.curvature.solver import MOST_READINGS, Reading, State, check_tolerance, unit
from hawq.records import Estimate

STOPPING_RULES = ("change", "residual")


@component("solver/power", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class PowerIteration(Reading):
    """v ← Hv/‖Hv‖, λ = vᵀHv, from a random start (Algorithm 1 of 1905.03696).

    Power iteration finds the eigenvalue of largest magnitude. When that one is negative, the iteration goes on with
    H − λI, whose dominant eigenvalue belongs to the largest algebraic one of H; so the sign is never lost.

    Args:
        tolerance: relative accuracy at which to stop.
        max_iterations: most products per block (twice that when the dominant eigenvalue is negative).
        stopping: "change" stops when |λ_k − λ_{k−1}| ≤ tolerance · |λ_k|, the published rule; "residual" stops when
            ‖Hv − λv‖ ≤ tolerance · |λ|, which proves an eigenvalue within that distance.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.01
    max_iterations: int = 100
    stopping: str = "change"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        check_range("max_iterations", self.max_iterations, least=1, most=MOST_READINGS)
        check_choice("stopping", self.stopping, STOPPING_RULES)

    @property
    def name(self) -> str:
        """How results call it."""
        return "power"

    @property
    def reads(self) -> str:
        """Products H · state["vector"] (n_i,)."""
        return "products"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`seed` is not used: nothing is drawn."""
        return {
            "vector": unit(vector),
            "start": vector,
            "value": float("nan"),
            "residual": float("inf"),
            "shift": 0.0,
            "iterations": 0,
            "products": 0,
            "converged": False,
            "done": False,
        }

    def update(self, state: State, reading: Tensor) -> State:
        """One more iteration; `reading` is H · state["vector"] (n_i,)."""
        vector, shift = state["vector"], state["shift"]
        value = float(vector.dot(reading))
        residual = float((reading - value * vector).norm())
        iterations, products = state["iterations"] + 1, state["products"] + 1
        measured = state | {"value": value, "residual": residual, "iterations": iterations, "products": products}
        shifted = reading - shift * vector
        if float(shifted.norm()) == 0.0:  # v spans the whole space left: the eigenvalue is exact
            return self._finish(measured, converged=True)
        converged = self._has_converged(value, state["value"], residual)
        if converged or iterations >= self.max_iterations:
            return self._finish(measured, converged=converged)
        return measured | {"vector": unit(shifted)}

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "eigenvalue", with the residual of its vector."""
        return {"eigenvalue": Estimate(state["value"], state["residual"], state["products"], state["converged"])}

    def eigenvector(self, state: State) -> Tensor:
        """The last vector (n_i,) of the iteration."""
        vector: Tensor = state["vector"]
        return vector

    def sharper(self) -> PowerIteration:
        """The same with half the tolerance."""
        return replace(self, tolerance=self.tolerance / 2)

    def _has_converged(self, value: float, previous: float, residual: float) -> bool:
        if self.stopping == "residual":
            return residual <= self.tolerance * abs(value)
        return abs(value - previous) <= self.tolerance * abs(value)  # False on the first product: previous is NaN

    def _finish(self, state: State, *, converged: bool) -> State:
        """Ends, or, when the dominant eigenvalue is negative, begins again on H − λI."""
        if state["value"] < 0.0 and state["shift"] == 0.0:
            restart = {"value": float("nan"), "iterations": 0, "vector": unit(state["start"])}
            return state | restart | {"shift": state["value"]}
        return state | {"converged": converged, "done": True}
