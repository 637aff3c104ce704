"""Errors mean what they say: counted over two hundred seeded runs."""

import numpy as np
import pytest
import torch
from networks import explicit_hessian
from spectra import matrix
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import BlockHessian, Hutchinson, Lanczos, PowerIteration, solve, solve_blocks
from hawq.sensitivity import block_weights

RUNS = 200


def random_network_and_data(seed):
    """An MLP with a width and activation of its own, or a convolution; 40 samples, some of them far out."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    width, act = 3 + seed % 4, (nn.Tanh, nn.ReLU, nn.Softplus)[seed % 3]()
    if seed % 2:
        model = nn.Sequential(nn.Flatten(), nn.Linear(8, width), act, nn.Linear(width, 3))
    else:
        model = nn.Sequential(nn.Conv2d(2, width, 2), act, nn.Flatten(), nn.Linear(width, 3))
    images = torch.randn(40, 2, 2, 2, generator=generator, dtype=torch.float64)
    images *= torch.exp(torch.randn(40, 1, 1, 1, generator=generator, dtype=torch.float64))
    return model.double().eval(), (images, torch.randint(3, (40,), generator=generator))


@pytest.mark.parametrize(
    "solver",
    [Lanczos(), Lanczos(start_from="gradient"), PowerIteration(0.01, 1000, "residual", start_from="subset")],
    ids=["lanczos", "lanczos from the gradient", "power"],
)
def test_eigenvalues_of_networks_lie_within_their_bounds(solver):
    covered, far, count = 0, 0, 0
    for seed in range(RUNS // 3):
        model, batch = random_network_and_data(seed)
        blocks = find_blocks(model)
        operator = BlockHessian(model, {b.name: block_weights(model, b) for b in blocks}, [batch], F.cross_entropy)
        found = solve_blocks(operator, solver, seed)
        for block in blocks:
            estimate = found[block.name]["eigenvalue"]
            true = float(torch.linalg.eigvalsh(explicit_hessian(model, block, batch, F.cross_entropy))[-1])
            covered += abs(estimate.value - true) <= estimate.error + 1e-12
            far += abs(estimate.value - true) > 0.02 * true
            count += 1
            assert estimate.converged
    assert covered >= 0.95 * count
    assert far <= 0.05 * count


TOLERANCE = {"flat": 0.02, "few large": 0.1, "both signs": 0.3}


def spectrum_of(seed, shape):
    """Long: even, so that every draw is much alike; a few large ones; both signs."""
    rng = np.random.default_rng(seed)
    parts = {
        "flat": [rng.uniform(0.5, 1.5, 60)],
        "few large": [rng.uniform(0, 0.02, 55), rng.uniform(5, 10, 5)],
        "both signs": [rng.normal(0.3, 1, 60)],
    }
    return np.concatenate(parts[shape]).tolist()


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("shape", ["flat", "few large", "both signs"])
def test_traces_lie_within_two_standard_errors_as_often_as_they_should(shape, rank):
    covered = 0
    for seed in range(RUNS):
        spectrum = spectrum_of(seed, shape)
        dense, start = matrix(spectrum, seed)
        trace = solve(Hutchinson(TOLERANCE[shape], rank=rank), dense.mv, start, seed * 10_000)["trace"]
        covered += abs(trace.value - sum(spectrum)) <= 2 * trace.error
    assert 0.90 * RUNS <= covered <= 0.99 * RUNS


def test_deflation_needs_far_fewer_products_where_few_eigenvalues_are_large():
    products = {0: 0, 8: 0}
    for seed in range(20):
        dense, start = matrix(spectrum_of(seed, "few large"), seed)
        for rank in products:
            estimate = solve(Hutchinson(rank=rank), dense.mv, start, seed)["trace"]
            assert estimate.converged
            products[rank] += estimate.products
    assert products[8] < products[0] / 4
