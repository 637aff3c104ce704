"""How large the largest eigenvalue can be, from a few products with a random vector.

Let B be a symmetric matrix of dimension d and g uniform on the sphere, independent of B. With the unit eigenvector u of
λ = λ_max(B), (g·u)² has the distribution Beta(1/2, (d − 1)/2), so it is at least its quantile ω(δ) with probability
1 − δ. The spectral measure of g, μ(A) = Σ (g·u_i)² over the eigenvalues in A, then has a mass of at least ω at λ. Its
orthonormal polynomials p_0 … p_k follow from the α and β of k Lanczos steps from g, and for any polynomial q of degree
at most k, ω q(λ)² ≤ ∫ q² dμ. With q = Σ_j p_j(λ) p_j this is

    ω ≤ 1 / Σ_{j ≤ k} p_j(λ)²      (Christoffel's function; Szegő, Orthogonal Polynomials, §3.4),

and right of the largest Ritz value the sum grows without bound. So λ is at most the x where it reaches 1/ω. This holds
for all k at once: the event speaks of g alone, so one may stop whenever one likes. Kuczyński and Woźniakowski (1992)
bound the same for the worst spectrum; here the spectrum that the products have shown takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import betaincinv  # the quantile; scipy.stats takes half a second to import

CONFIDENCE = 0.99
"""The probability with which bounds on eigenvalues hold, over the random vectors."""

_TINY = (
    1e-14  # of the scale of B: what β is at least, so that an invariant space is a steep bound and not an infinite one
)
_HALVINGS = 60


@cache
def least_overlap(dimension: int, risk: float) -> float:
    """ω: (g·u)² of a random unit vector g and a fixed one u (dimension,) is smaller with probability `risk`."""
    return 1.0 if dimension < 2 else float(betaincinv(0.5, (dimension - 1) / 2, risk))


def largest_eigenvalue_bound(alpha: Sequence[float], beta: Sequence[float], overlap: float) -> float:
    """The largest x at which the spectral measure of the start may have a mass of `overlap`.

    Args:
        alpha, beta: α_1 … α_k and β_1 … β_k of k Lanczos steps; k may be 0, which bounds nothing.
        overlap: the least mass at the largest eigenvalue, 0 … 1.
    """
    if not alpha:
        return float("inf")
    scale = max(*map(abs, alpha), *beta)
    if scale == 0.0:
        return 0.0
    couplings = [max(value, _TINY * scale) for value in beta]
    lower = float(np.linalg.eigvalsh(_tridiagonal(alpha, beta[:-1]))[-1])

    def excluded(x: float) -> bool:
        before, value, total = 0.0, 1.0, 1.0
        for place, (a, b) in enumerate(zip(alpha, couplings, strict=True)):
            inner = couplings[place - 1] * before if place else 0.0
            before, value = value, ((x - a) * value - inner) / b
            total += value * value
            if total * overlap > 1.0:
                return True
        return False

    if excluded(lower):  # the Ritz value itself is a lower bound
        return lower
    step = scale
    while not excluded(lower + step):
        step *= 2
    upper = lower + step
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        lower, upper = (lower, middle) if excluded(middle) else (middle, upper)
    return upper


def with_complement(matrix: Sequence[Sequence[float]], coupling: Sequence[float], complement: float) -> float:
    """A bound on λ_max(H) from a subspace Y and a bound on the rest.

    With H Y = Y M + q cᵀ, q a unit vector orthogonal to Y, and B = (I − YYᵀ) H (I − YYᵀ) ⪯ μ I on the complement of Y,

        H = [[M, c qᵀ], [q cᵀ, B]] ⪯ [[M, c qᵀ], [q cᵀ, μ I]], with the largest eigenvalue of [[M, c], [cᵀ, μ]].

    The bound on B may be one on the complement of a part of Y: it is then larger than it need be (interlacing).

    Args:
        matrix: M (j, j).
        coupling: c (j,).
        complement: μ, infinite where nothing is known of it, −∞ where there is no complement.
    """
    if not len(matrix) or complement == float("inf"):
        return complement
    if complement == -float("inf"):
        return float(np.linalg.eigvalsh(np.array(matrix))[-1])
    size = len(matrix) + 1
    bordered = np.empty((size, size))
    bordered[:-1, :-1], bordered[-1, :-1], bordered[:-1, -1] = matrix, coupling, coupling
    bordered[-1, -1] = complement
    return float(np.linalg.eigvalsh(bordered)[-1])


def _tridiagonal(diagonal: Sequence[float], off: Sequence[float]) -> np.ndarray:
    return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
