"""Lanczos iteration on matrices whose spectra are known."""

import numpy as np
import pytest
from scipy.sparse.linalg import eigsh
from spectra import SPECTRA, matrix, solve_with_reloads

from hawq.curvature import Lanczos, PowerIteration, solve


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_finds_the_largest_algebraic_eigenvalue(spectrum):
    dense, start = matrix(spectrum)
    estimate = solve(Lanczos(1e-9), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(max(spectrum), abs=1e-9)
    assert estimate.converged and estimate.products <= len(set(spectrum))


def test_finds_both_ends_of_the_spectrum():
    dense, start = matrix(SPECTRA["dominant negative"])
    found = solve(Lanczos(1e-9, both_ends=True), dense.mv, start)
    assert found["eigenvalue"].value == pytest.approx(3.0)
    assert found["smallest"].value == pytest.approx(-5.0)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_arpack_on_a_long_spectrum(seed):
    spectrum = np.concatenate([np.random.default_rng(seed).normal(0, 0.3, 120), [8.0, 7.5, 5.0]])
    dense, start = matrix(spectrum.tolist())
    estimate = solve(Lanczos(1e-6, 100), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(float(eigsh(dense.numpy(), k=1, which="LA")[0][0]), rel=1e-9)


def test_true_value_lies_within_the_bound_in_95_of_100_spectra():
    covered, products, power_products = 0, 0, 0
    for seed in range(200):
        rng = np.random.default_rng(10_000 + seed)
        spectrum = np.concatenate([rng.uniform(-0.5, 0.5, 146), rng.uniform(0, 8, 4)])
        dense, start = matrix(spectrum.tolist(), seed)
        estimate = solve(Lanczos(0.01), dense.mv, start)["eigenvalue"]
        covered += abs(estimate.value - spectrum.max()) <= estimate.error
        products += estimate.products
        power_products += solve(PowerIteration(0.01, 100, "residual"), dense.mv, start)["eigenvalue"].products
    assert covered >= 190
    assert products < 0.6 * power_products  # for the same proof


@pytest.mark.parametrize("name", ["clear gap", "dominant negative"])
def test_a_stored_state_goes_on_as_if_nothing_had_happened(name):
    dense, start = matrix(SPECTRA[name])
    solver = Lanczos(1e-8)
    assert solve_with_reloads(solver, dense, start) == solve(solver, dense.mv, start)


def test_too_few_products_are_told():
    dense, start = matrix([9.0, 8.9, 1.0, -2.0])
    estimate = solve(Lanczos(1e-9, 2), dense.mv, start)["eigenvalue"]
    assert not estimate.converged
    assert min(abs(value - estimate.value) for value in (9.0, 8.9, 1.0, -2.0)) <= estimate.error


@pytest.mark.parametrize(
    ("values", "message"),
    [({"tolerance": 1.0}, "tolerance=1.0"), ({"max_iterations": 1}, "max_iterations=1")],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Lanczos(**values)
