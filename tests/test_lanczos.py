"""Lanczos iteration on matrices whose spectra are known, from good, bad and adversarial starts."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from spectra import SPECTRA, matrix, solve_split, solve_with_reloads
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import BlockGaussNewton, BlockHessian, Lanczos, PowerIteration, solve, solve_blocks
from hawq.curvature.solver import STARTS
from hawq.sensitivity import block_weights


@pytest.mark.parametrize("start_from", STARTS)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_finds_the_largest_algebraic_eigenvalue(spectrum, start_from):
    dense, start = matrix(spectrum)
    estimate = solve(Lanczos(1e-9, start_from=start_from), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(max(spectrum), abs=1e-9)
    assert estimate.converged and estimate.products <= 2 * len(set(spectrum))


@pytest.mark.parametrize("start_from", STARTS)
def test_finds_both_ends_of_the_spectrum(start_from):
    dense, start = matrix(SPECTRA["dominant negative"])
    found = solve(Lanczos(1e-9, both_ends=True, start_from=start_from), dense.mv, start)
    assert found["eigenvalue"].value == pytest.approx(3.0)
    assert found["smallest"].value == pytest.approx(-5.0)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_arpack_on_a_long_spectrum(seed):
    spectrum = np.concatenate([np.random.default_rng(seed).normal(0, 0.3, 120), [8.0, 7.5, 5.0]])
    dense, start = matrix(spectrum.tolist())
    estimate = solve(Lanczos(1e-9, 100), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(float(eigsh(dense.numpy(), k=1, which="LA")[0][0]), rel=1e-9)


def test_true_value_lies_within_the_bound_in_95_of_100_spectra():
    covered, products, power_products = 0, 0, 0
    for seed in range(200):
        rng = np.random.default_rng(10_000 + seed)
        spectrum = np.concatenate([rng.uniform(-0.5, 0.5, 146), rng.uniform(0, 8, 4)])
        dense, start = matrix(spectrum.tolist(), seed)
        estimate = solve(Lanczos(0.01, start_from="random"), dense.mv, start)["eigenvalue"]
        covered += abs(estimate.value - spectrum.max()) <= estimate.error
        products += estimate.products
        power_products += solve(PowerIteration(0.01, 100, "residual"), dense.mv, start)["eigenvalue"].products
    assert covered >= 190
    assert products < 0.6 * power_products  # which bounds nothing


HARD = {  # spectra of 40 eigenvalues, with a top that is easy or hard to see
    "one in a bulk": lambda rng: [*rng.exponential(0.05, 39), 1.0],
    "close second": lambda rng: [*rng.uniform(0, 0.9, 38), 0.97, 1.0],
    "no gap": lambda rng: rng.uniform(-1, 1, 40),
    "power law": lambda rng: 1 / np.arange(1, 41),
    "negative dominates": lambda rng: [*rng.uniform(-3, 0.5, 39), 1.0],
}
SEEDS = 35


def cases():
    """(spectrum, seed, basis); each is run in five ways, for one end or both."""
    for place, made in enumerate(HARD.values()):
        for seed in range(SEEDS):
            rng = np.random.default_rng([place, seed])
            yield np.sort(np.asarray(made(rng))), 100 * place + seed, np.linalg.qr(rng.standard_normal((40, 40)))[0]


def test_errors_hold_as_often_as_they_say_over_a_thousand_runs():
    """From an eigenvector that is not the top one, for one end and both; from a random start; and from a subset that
    has not seen the top eigenvectors, with and without rows that are nearly its own.
    """
    held, counted, close = 0, 0, 0
    for values, seed, basis in cases():
        dense = torch.from_numpy(basis @ np.diag(values) @ basis.T)
        wrong, generator = torch.from_numpy(basis[:, -2 - seed % 3].copy()), torch.Generator().manual_seed(seed)
        start = torch.randn(40, generator=generator, dtype=torch.float64)
        cut = np.where(np.arange(40) < 38 - seed % 2, values, 0.0)  # the subset has not seen the top two or three
        subset = torch.from_numpy(basis @ np.diag(cut) @ basis.T) * 4
        rest = (dense - 0.25 * subset) / 0.75
        heaviest = torch.from_numpy((basis[:, 34:] * np.sqrt(np.abs(4 * cut[34:]))).T.copy())
        rows = heaviest + 0.1 * torch.randn(heaviest.shape, generator=generator, dtype=torch.float64) * seed % 2
        runs = [
            solve(Lanczos(0.05, 60), dense.mv, wrong, seed),
            solve(Lanczos(0.05, 60, both_ends=True), dense.mv, wrong, seed),
            solve(Lanczos(0.05, 60, start_from="random"), dense.mv, start, seed),
            solve_split(Lanczos(0.05, 60), subset, rest, 0.25, start, seed),
            solve_split(Lanczos(0.05, 60), subset, rest, 0.25, rows[-1], seed, rows),
        ]
        for found in runs:
            for quantity, estimate in found.items():
                truth = values[-1] if quantity == "eigenvalue" else values[0]
                assert estimate.confidence in (0.99, 1.0) and estimate.converged
                held += abs(estimate.value - truth) <= estimate.error + 1e-12
                close += abs(estimate.value - truth) <= 0.05 * np.abs(values).max()
                counted += 1
    assert counted == 6 * 5 * SEEDS > 1000
    assert held >= 0.99 * counted and close >= 0.99 * counted


@pytest.mark.parametrize("sign", [1, -1], ids=["largest", "smallest"])
@pytest.mark.parametrize("other", [1.5, 40.0, 1e4])
def test_a_block_that_the_start_does_not_touch_is_found(other, sign):
    """Two matrices side by side; the start is the exact top of the first, and its residual is zero."""
    first, _ = matrix([1.0, 0.5, -0.2, 0.1] * 5)
    second, _ = matrix([other, 0.3, 0.2, -0.1] * 3, seed=1)
    dense = sign * torch.block_diag(first, second)
    top = torch.cat([torch.linalg.eigh(first)[1][:, -1], torch.zeros(12, dtype=torch.float64)])
    for seed in range(5):
        found = solve(Lanczos(0.01, both_ends=sign < 0), dense.mv, top, seed)
        estimate = found["eigenvalue" if sign > 0 else "smallest"]
        assert estimate.value == pytest.approx(sign * other, rel=0.01) and estimate.converged
        assert abs(estimate.value - sign * other) <= estimate.error


@pytest.mark.parametrize("share", [0.125, 0.5])
@pytest.mark.parametrize("rest_top", [0.0, 0.4, 3.0, 100.0])
def test_a_subset_that_acts_on_other_weights_misleads_nobody(rest_top, share):
    """Samples on separate weights: what the subset finds is an eigenvector of the whole, and often the wrong one."""
    subset = torch.block_diag(matrix([1.0, 0.8, 0.1] * 4)[0], torch.zeros(12, 12, dtype=torch.float64))
    rest = torch.block_diag(torch.zeros(12, 12, dtype=torch.float64), matrix([rest_top, 0.05, 0.02] * 4)[0])
    truth = max(share * 1.0, (1 - share) * max(rest_top, 0.05))
    for seed in range(5):
        start = torch.randn(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        estimate = solve_split(Lanczos(0.01), subset, rest, share, start, seed)["eigenvalue"]
        assert abs(estimate.value - truth) <= estimate.error + 1e-12 and estimate.error <= 0.01 * truth


def test_a_rest_without_curvature_costs_two_products():
    """One for the product of the vector found, one for the random vector."""
    subset, start = matrix([9.0, 4.0, *[0.1] * 40])
    estimate = solve_split(Lanczos(0.01), subset, 1e-4 * matrix([1.0] * 42)[0], 0.25, start)["eigenvalue"]
    assert estimate.products == 2 and estimate.value == pytest.approx(0.25 * 9.0, rel=1e-3)


def one_image_per_class(seed):
    """A linear classifier: each image has inputs of its own, so it curves weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(1.5 * torch.randn(12, 1, generator=generator, dtype=torch.float64))
    images = scales * torch.block_diag(*torch.randn(12, 1, 5, generator=generator, dtype=torch.float64))
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(60, 12)).double().eval(), (images, torch.arange(12))


@pytest.mark.parametrize("start_from", STARTS)
@pytest.mark.parametrize("kind", [BlockHessian, BlockGaussNewton])
def test_a_linear_classifier_with_one_image_a_class(kind, start_from):
    for seed in range(12):
        model, (images, targets) = one_image_per_class(seed)
        block = {b.name: block_weights(model, b) for b in find_blocks(model)}
        operator = kind(model, block, [(images, targets)], F.cross_entropy)
        p = model(images).detach().softmax(1)
        roots = [  # λ of x xᵀ ⊗ (diag p − p pᵀ) / 12; the images are orthogonal
            float(torch.linalg.eigvalsh(torch.diag(q) - q.outer(q))[-1] * x.square().sum()) / 12
            for q, x in zip(p, images, strict=True)
        ]
        (found,) = solve_blocks(operator, Lanczos(start_from=start_from), seed).values()
        estimate = found["eigenvalue"]
        assert estimate.value == pytest.approx(max(roots), rel=0.01), seed
        assert abs(estimate.value - max(roots)) <= estimate.error and estimate.converged


@pytest.mark.parametrize("name", ["clear gap", "dominant negative"])
def test_a_stored_state_goes_on_as_if_nothing_had_happened(name):
    dense, start = matrix(SPECTRA[name])
    solver = Lanczos(1e-8)
    assert solve_with_reloads(solver, dense, start) == solve(solver, dense.mv, start)


def test_too_few_products_are_told():
    dense, start = matrix([9.0, 8.9, 1.0, -2.0])
    estimate = solve(Lanczos(1e-9, 2), dense.mv, start)["eigenvalue"]
    assert not estimate.converged and estimate.confidence is None
    assert min(abs(value - estimate.value) for value in (9.0, 8.9, 1.0, -2.0)) <= estimate.error
    bounded = solve(Lanczos(1e-9, 3, start_from="random"), *long_matrix())["eigenvalue"]
    assert not bounded.converged and bounded.confidence == 0.99 and math.isfinite(bounded.error)


def long_matrix():
    dense, start = matrix(np.random.default_rng(0).normal(0, 1, 80).tolist())
    return dense.mv, start


@pytest.mark.parametrize(
    ("values", "message"),
    [({"tolerance": 1.0}, "tolerance=1.0"), ({"max_iterations": 1}, "max_iterations=1")],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Lanczos(**values)
