"""Lanczos iteration with full reorthogonalisation: both ends of the spectrum from one Krylov space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hawq.checks import check_range
from hawq.components import component
from hawq.curvature.solver import MOST_READINGS, Reading, State, check_tolerance, unit
from hawq.records import Estimate

_BREAKDOWN = 1e-6  # a remainder this small, relative to Hv, means that the Krylov space is invariant


@component("solver/lanczos", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class Lanczos(Reading):
    """Largest algebraic eigenvalue from the Krylov space of v, Hv, H²v, … (Lanczos 1950; Parlett, ch. 13).

    The basis is orthogonalised twice against all earlier vectors, so no spurious copies appear. For the Ritz pair
    (θ, y) an eigenvalue lies within the residual ‖Hy − θy‖ = |β_k s_k| of θ (Parlett, theorem 4.5.1). The sharper
    bound residual²/gap is not used: before convergence the gap is not known, and with the Ritz gap in its place the
    bound held in only 57 to 66 % of 200 random spectra, the residual in 96 to 100 %, for a third more products.

    Args:
        tolerance: stops once the residual is below tolerance · |θ|.
        max_iterations: most products per block; also the number of basis vectors kept.
        both_ends: goes on until the smallest algebraic eigenvalue is as near, relative to the larger of the two.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.01
    max_iterations: int = 50
    both_ends: bool = False
    start_from: str = field(default="subset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        check_range("max_iterations", self.max_iterations, least=2, most=MOST_READINGS)

    @property
    def name(self) -> str:
        """How results call it."""
        return "lanczos" if self.curvature == "hessian" else f"lanczos ({self.curvature})"

    @property
    def reads(self) -> str:
        """Products H · state["vector"] (n_i,)."""
        return "products"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`seed` is not used: nothing is drawn."""
        return {"done": False, "converged": False, "directions": [], **krylov_start(vector)}

    def update(self, state: State, reading: Tensor) -> State:
        """One more vector of the Krylov space; `reading` is H · state["vector"] (n_i,)."""
        grown = krylov_step(state, reading)
        ends = ritz_pairs(grown)
        largest, smallest = ends[-1], ends[0]
        scale = max(abs(largest.value), abs(smallest.value))
        near = largest.error <= self.tolerance * abs(largest.value) or largest.error == 0.0
        near_too = not self.both_ends or smallest.error <= self.tolerance * scale
        converged = near and near_too
        if not (converged or grown["invariant"] or len(grown["alpha"]) >= self.max_iterations):
            return grown
        directions = [ritz_vector(grown, largest)] + ([ritz_vector(grown, smallest)] if self.both_ends else [])
        return grown | {"done": True, "converged": converged, "directions": directions, "basis": []}

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "eigenvalue", and "smallest" with `both_ends`."""
        if not state["alpha"]:
            return {"eigenvalue": Estimate(float("nan"), float("inf"), 0, False)}
        ends, products = ritz_pairs(state), len(state["alpha"])
        found = {"eigenvalue": Estimate(ends[-1].value, ends[-1].error, products, state["converged"])}
        if self.both_ends:
            found["smallest"] = Estimate(ends[0].value, ends[0].error, products, state["converged"])
        return found

    def eigenvector(self, state: State) -> Tensor:
        """The Ritz vector (n_i,); for both ends their sum, whose Krylov space holds both."""
        total: Tensor = sum(state["directions"][1:], start=state["directions"][0])
        return total / total.norm()

    def sharper(self) -> Lanczos:
        """The same with half the tolerance."""
        return replace(self, tolerance=self.tolerance / 2)


@dataclass(frozen=True)
class RitzPair:
    """Approximate eigenvalue θ, its residual norm, and the eigenvector's coefficients in the Krylov basis (k,)."""

    value: float
    error: float
    coefficients: np.ndarray


def krylov_start(vector: Tensor) -> State:
    """Before the first product: the basis holds the start alone, normalised."""
    first = unit(vector)
    return {"vector": first, "basis": [first], "alpha": [], "beta": [], "invariant": False}


def krylov_step(state: State, product: Tensor) -> State:
    """One more product: α_k, β_k and the next basis vector of H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ."""
    basis: list[Tensor] = state["basis"]
    alpha = [*state["alpha"], float(state["vector"].dot(product))]
    remainder = product.clone()
    for _ in range(2):  # twice is enough (Parlett, §6.9)
        for vector in basis:
            remainder -= vector.dot(remainder) * vector
    beta = float(remainder.norm())
    invariant = beta <= _BREAKDOWN * float(product.norm()) or len(alpha) == len(remainder)
    if invariant:
        return state | {"alpha": alpha, "beta": [*state["beta"], 0.0], "invariant": True}
    following = remainder / beta
    return state | {
        "alpha": alpha,
        "beta": [*state["beta"], beta],
        "vector": following,
        "basis": [*basis, following],
    }


def ritz_pairs(state: State) -> list[RitzPair]:
    """Eigenpairs of T_k, smallest first; β_k times the last coefficient is the residual."""
    values, vectors = eigh_tridiagonal(np.array(state["alpha"]), np.array(state["beta"][:-1]))
    errors = np.abs(state["beta"][-1] * vectors[-1])
    return [RitzPair(float(v), float(e), vectors[:, i]) for i, (v, e) in enumerate(zip(values, errors, strict=True))]


def ritz_vector(state: State, pair: RitzPair) -> Tensor:
    """y = Q_k s (n,)."""
    total = torch.zeros_like(state["basis"][0])
    for coefficient, vector in zip(pair.coefficients, state["basis"], strict=False):  # the basis may be one longer
        total += float(coefficient) * vector
    return total
