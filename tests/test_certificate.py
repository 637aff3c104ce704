"""Bounds on the largest eigenvalue, against spectra that are known and draws that are counted."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal

from hawq.curvature.certificate import largest_eigenvalue_bound, least_overlap, with_complement


@pytest.mark.parametrize("dimension", [1, 2, 3, 40, 10**6])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.5])
def test_least_overlap_is_a_quantile_of_random_directions(dimension, risk):
    omega = least_overlap(dimension, risk)
    if dimension == 1:
        assert omega == 1.0
        return
    rng = np.random.default_rng(0)
    first = rng.standard_normal(20_000) ** 2
    overlaps = first / (first + rng.chisquare(dimension - 1, 20_000))  # (g·u)² of a normal vector, normalised
    assert abs((overlaps < omega).mean() - risk) < 4 * (risk * (1 - risk) / 20_000) ** 0.5


def lanczos(values, weights, steps):
    """α and β of the measure with these weights at these values, in float64 with reorthogonalisation."""
    basis, alpha, beta = [np.sqrt(weights / weights.sum())], [], []
    for _ in range(steps):
        product = values * basis[-1]
        alpha.append(basis[-1] @ product)
        for _ in range(2):
            for vector in basis:
                product = product - (vector @ product) * vector
        beta.append(np.linalg.norm(product))
        basis.append(product / beta[-1])
    return alpha, beta


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_bound_is_where_so_much_mass_may_still_be(steps):
    """Sharp: putting the mass at the bound and fitting the rest keeps all the moments that were seen."""
    rng = np.random.default_rng(steps)
    values, weights = rng.normal(0, 1, 30), rng.chisquare(1, 30)
    alpha, beta = lanczos(values, weights, steps)
    for omega in (1e-2, 1e-5, 1e-9):
        bound = largest_eigenvalue_bound(alpha, beta, omega)
        nodes, vectors = eigh_tridiagonal(np.array([*alpha, last_node(alpha, beta, bound)]), np.array(beta))
        assert nodes[-1] == pytest.approx(bound, rel=1e-9) and vectors[0, -1] ** 2 == pytest.approx(omega, rel=1e-6)


def last_node(alpha, beta, x):
    """α_{k+1} for which x is an eigenvalue of T_{k+1} (Gauss-Radau; Golub and Meurant, §6.2)."""
    shifted = np.diag(np.array(alpha) - x) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    last = np.zeros(len(alpha))
    last[-1] = beta[-1] ** 2
    return x + np.linalg.solve(shifted, last)[-1]


def test_more_products_never_loosen_it_and_the_ritz_value_is_below():
    rng = np.random.default_rng(0)
    values, weights = rng.exponential(1, 50), rng.chisquare(1, 50)
    alpha, beta = lanczos(values, weights, 12)
    bounds = [largest_eigenvalue_bound(alpha[:k], beta[:k], 1e-4) for k in range(13)]
    assert bounds[0] == np.inf and all(a >= b * (1 - 1e-12) for a, b in pairwise(bounds))
    assert bounds[-1] >= eigh_tridiagonal(np.array(alpha), np.array(beta[:-1]))[0][-1]


def test_an_invariant_space_leaves_no_room():
    assert largest_eigenvalue_bound([2.0], [0.0], 1e-6) == pytest.approx(2.0, rel=1e-9)
    assert largest_eigenvalue_bound([0.0], [0.0], 1e-6) == 0.0
    assert largest_eigenvalue_bound([1.0, -1.0], [0.5, 0.0], 1e-6) == pytest.approx(5**0.5 / 2, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_subspace_and_a_bound_on_its_complement_bound_the_whole(seed):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((12, 12))
    dense = dense + dense.T
    inside, coupling = dense[:3, :3], np.zeros((3, 9))
    coupling[:, 0] = rng.standard_normal(3)
    dense[:3, 3:], dense[3:, :3] = coupling, coupling.T
    bound = with_complement(inside.tolist(), coupling[:, 0].tolist(), float(np.linalg.eigvalsh(dense[3:, 3:])[-1]))
    assert np.linalg.eigvalsh(dense)[-1] <= bound + 1e-12
    assert with_complement(inside.tolist(), [0.0] * 3, -np.inf) == pytest.approx(np.linalg.eigvalsh(inside)[-1])
    assert with_complement([], [], 2.5) == 2.5 and with_complement([[1.0]], [0.1], np.inf) == np.inf
