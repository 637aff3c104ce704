"""Eigenvalue and trace of the Gauss-Newton matrix from its factor: no products, no iteration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.curvature.hutchinson import Hutchinson
from hawq.curvature.lanczos import Lanczos
from hawq.curvature.solver import MOST_READINGS, Reading, Solver, State, check_tolerance, mean_and_error
from hawq.records import Estimate

QUANTITIES = {"eigenvalue": 3, "trace": 6}  # and how many sketches are the fewest that say something
_MOST_SKETCHES = 200


@component("solver/low_rank", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class LowRank(Reading):
    """λ(G) and Tr(G) of G = R Rᵀ + T, R the rows with the largest curvature of the outputs, T what they leave.

    λ(R Rᵀ) ≤ λ(G) ≤ λ(R Rᵀ) + Tr(T) (Weyl), λ(R Rᵀ) from the small matrix RᵀR (ViViT, 2106.02624, §2.2);
    Tr(G) = ‖R‖² + E‖s‖², s random sketches with E s sᵀ = T. Where no weight acts on its own slope ∂z/∂w, as in networks
    of convolutions, linear layers, frozen batch norm and ReLU, Tr(H_ii) = Tr(G_ii) exactly (the diagonals are equal),
    so the same rows give the trace of the Hessian. Blocks that this does not settle go on with products: Lanczos from
    the top of R Rᵀ, or Hutchinson.

    Args:
        quantity: "eigenvalue" (of curvature="ggn") or "trace": what is wanted within the tolerance.
        tolerance: error of the eigenvalue, or standard error of the trace, relative to the value.
        rows: most rows that are read one by one; fewer where they hold nearly all.

    Raises:
        ValueError: a value out of range.
    """

    curvature: str = field(default="ggn", kw_only=True)
    quantity: str = "eigenvalue"
    tolerance: float = 0.01
    rows: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        check_choice("quantity", self.quantity, tuple(QUANTITIES))
        check_range("rows", self.rows, least=0, most=MOST_READINGS)
        if self.quantity == "eigenvalue" and self.curvature != "ggn":
            raise ValueError("quantity='eigenvalue' needs curvature=ggn: give that, or solver=lanczos")
        if self.start_from != "random":
            raise ValueError(f"start_from={self.start_from!r} does not fit rows: give random")

    @property
    def name(self) -> str:
        """How results call it."""
        return f"low rank ({self.curvature})"

    @property
    def reads(self) -> str:
        """Rows (n_i,) of the Gauss-Newton matrix, then sketches of the others."""
        return "rows"

    @property
    def keeps_rows(self) -> bool:
        """Whether all rows are held until the last of them has come."""
        return self.quantity == "eigenvalue"

    @property
    def rest(self) -> float:
        """Share of the curvature of the outputs that is not worth rows of its own: a twentieth of the tolerance."""
        return self.tolerance / 20

    def with_rows(self, count: int) -> LowRank:
        """The same solver for exactly `count` rows."""
        return replace(self, rows=count)

    def otherwise(self) -> Solver:
        """What finds the same by products."""
        if self.quantity == "trace":
            return Hutchinson(self.tolerance, rank=8, curvature=self.curvature)
        return Lanczos(self.tolerance, curvature=self.curvature, start_from="gradient")

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """Neither is used: the rows decide."""
        known = {"rows": [], "seen": 0, "known": 0.0, "top": 0.0, "draws": []}
        return {"vector": vector, "done": False, "converged": False, **known}

    def update(self, state: State, reading: Tensor) -> State:
        """`reading` is a row for the first `rows` times, a sketch of all others after that."""
        size = float(reading.square().sum())
        if state["seen"] < self.rows:
            kept = [*state["rows"], reading] if size and self.keeps_rows else state["rows"]
            state = state | {"seen": state["seen"] + 1, "known": state["known"] + size, "rows": kept}
            return self._decomposed(state) if state["seen"] == self.rows else state
        state = state | {"draws": [*state["draws"], size]}
        estimate, draws = self.estimates(state)[self.quantity], len(state["draws"])
        near = draws >= QUANTITIES[self.quantity] and estimate.error <= self.tolerance * estimate.value
        return state | {"converged": near, "done": near or self._is_hopeless(state)}

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "trace" with its standard error, and before it "eigenvalue" where that is wanted."""
        rest, error = mean_and_error(state["draws"])
        readings = state["seen"] + len(state["draws"])
        trace = Estimate(state["known"] + rest, error, readings, state["converged"])
        if self.quantity == "trace":
            return {"trace": trace}
        return {"eigenvalue": Estimate(state["top"], rest + 2 * error, readings, state["converged"]), "trace": trace}

    def _decomposed(self, state: State) -> State:
        """The rows replaced by the top of R Rᵀ."""
        if not state["rows"]:
            return state
        matrix = torch.stack(state["rows"])  # Rᵀ
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return state | {"rows": [], "top": float(values[-1]), "vector": matrix.T @ vectors[:, -1]}

    def _is_hopeless(self, state: State) -> bool:
        """Whether more sketches would not help: the rest is too large for the bound, or there were enough."""
        if len(state["draws"]) < QUANTITIES[self.quantity]:
            return False
        too_large = self.quantity == "eigenvalue" and mean_and_error(state["draws"])[0] > self.tolerance * state["top"]
        return too_large or len(state["draws"]) >= _MOST_SKETCHES
