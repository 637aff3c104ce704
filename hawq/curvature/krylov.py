"""Krylov spaces of symmetric matrices: one more product, one more vector of the basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hawq.curvature.solver import State, unit

_BREAKDOWN = 1e-6  # a remainder this small, relative to Hv, means that the Krylov space is invariant


@dataclass(frozen=True)
class RitzPair:
    """Approximate eigenvalue θ, its residual norm ‖Hy − θy‖, and the coefficients (k,) of y in the Krylov basis.

    `coupling` is the residual with its sign: Hy = θy + coupling · q_{k+1}.
    """

    value: float
    coupling: float
    coefficients: np.ndarray

    @property
    def error(self) -> float:
        """‖Hy − θy‖: an eigenvalue lies within this distance of θ (Parlett, theorem 4.5.1), perhaps not the largest."""
        return abs(self.coupling)


def krylov_start(vector: Tensor) -> State:
    """Before the first product: the basis holds the start (n,) alone, normalised."""
    first = unit(vector)
    return {"vector": first, "basis": [first], "alpha": [], "beta": [], "invariant": False}


def krylov_step(state: State, product: Tensor, beyond: Sequence[Tensor] = ()) -> State:
    """One more product: α_k, β_k and the next basis vector of H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ.

    The basis is orthogonalised twice against all earlier vectors, so no spurious copies of eigenvalues appear.

    Args:
        state: from `krylov_start` or an earlier step.
        product: H · state["vector"] (n,).
        beyond: orthonormal vectors (n,) that the start is orthogonal to; the matrix is then that of their complement.
    """
    basis: list[Tensor] = state["basis"]
    alpha = [*state["alpha"], float(state["vector"].dot(product))]
    remainder = product.clone()
    for _ in range(2):  # twice is enough (Parlett, §6.9)
        for vector in (*beyond, *basis):
            remainder -= vector.dot(remainder) * vector
    beta = float(remainder.norm())
    full = len(alpha) + len(beyond) == len(remainder)
    if full or beta <= _BREAKDOWN * float(product.norm()):
        return state | {"alpha": alpha, "beta": [*state["beta"], 0.0 if full else beta], "invariant": True}
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
    couplings = state["beta"][-1] * vectors[-1]
    return [
        RitzPair(float(value), float(coupling), vectors[:, i])
        for i, (value, coupling) in enumerate(zip(values, couplings, strict=True))
    ]


def ritz_vector(state: State, pair: RitzPair) -> Tensor:
    """y = Q_k s (n,)."""
    return combination(pair.coefficients, state["basis"])  # the basis may be one longer


def combination(coefficients: Sequence[float] | np.ndarray, vectors: Sequence[Tensor]) -> Tensor:
    """Σ c_i v_i (n,), over as many vectors as there are coefficients."""
    total = torch.zeros_like(vectors[0])
    for coefficient, vector in zip(coefficients, vectors, strict=False):
        total += float(coefficient) * vector
    return total
