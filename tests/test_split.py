"""Few samples that hold nearly all curvature, and the rest: their matrices add up, and the analysis is that of all."""

import pytest
import torch
from networks import build, cut, explicit_gauss_newton, explicit_hessian, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import OPERATORS, Lanczos, solve_blocks
from hawq.curvature.split import split
from hawq.sensitivity import block_weights

NUM_SAMPLES, CURVED = 24, [2, 11, 17]
EXPLICIT = {"hessian": explicit_hessian, "ggn": explicit_gauss_newton}


def memorised(model):
    """All samples but three have outputs so sure of the label that the loss has neither slope nor curvature there."""
    images, _ = samples(NUM_SAMPLES)
    images[[i for i in range(NUM_SAMPLES) if i not in CURVED]] *= 1e3
    targets = model(images).argmax(1)
    targets[CURVED[0]] = (targets[CURVED[0]] + 1) % 3
    return images, targets


def operator_of(kind, model, batches, loss=F.cross_entropy):
    return OPERATORS[kind](model, {b.name: block_weights(model, b) for b in find_blocks(model)}, batches, loss)


@pytest.mark.parametrize("sizes", [(24,), (10, 10, 4)], ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_the_parts_add_up(kind, sizes):
    model = build("residual")
    operator = operator_of(kind, model, cut(memorised(model), sizes))
    parts = split(operator)
    assert parts.subset.num_samples == parts.share * NUM_SAMPLES <= NUM_SAMPLES / 2
    assert parts.subset.num_samples + parts.rest.num_samples == NUM_SAMPLES
    vectors = {n: operator.random_vector(n, torch.Generator().manual_seed(1)) for n in operator.names}
    whole, subset, rest = (o.products(vectors) for o in (operator, parts.subset, parts.rest))
    for block in operator.names:
        expected = parts.share * subset[block] + (1 - parts.share) * rest[block]
        torch.testing.assert_close(whole[block], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(24,), (10, 10, 4)], ids=str)
@pytest.mark.parametrize("both_ends", [False, True])
@pytest.mark.parametrize("kind", OPERATORS)
def test_the_analysis_is_that_of_all_samples(kind, both_ends, sizes):
    model = build("residual")
    batch = memorised(model)
    operator = operator_of(kind, model, cut(batch, sizes))
    assert split(operator) is not None
    found = solve_blocks(operator, Lanczos(1e-3, both_ends=both_ends), seed=0)
    for block in find_blocks(model):
        spectrum = torch.linalg.eigvalsh(EXPLICIT[kind](model, block, batch, F.cross_entropy))
        for quantity, truth in zip(("eigenvalue", "smallest"), (float(spectrum[-1]), float(spectrum[0])), strict=True):
            if quantity in found[block.name]:
                estimate = found[block.name][quantity]
                assert abs(estimate.value - truth) <= estimate.error + 1e-12 and estimate.converged


def with_batch_statistics():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))


def weighted(outputs, targets):
    """A mean that depends on who else is in the batch."""
    return F.cross_entropy(outputs, targets, torch.tensor([1.0, 9.0, 0.1], dtype=torch.float64))


def total(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


WHOLE = {
    "evenly curved": (lambda: build("residual"), lambda model: samples(NUM_SAMPLES), F.cross_entropy),
    "batch statistics": (with_batch_statistics, memorised, F.cross_entropy),
    "weights by class": (lambda: build("residual"), memorised, weighted),
    "a sum": (lambda: build("residual"), memorised, total),
}


@pytest.mark.parametrize(("made", "batch", "loss"), WHOLE.values(), ids=WHOLE)
def test_what_does_not_add_up_is_not_split(made, batch, loss):
    torch.manual_seed(0)
    model = made().double().eval()
    operator = operator_of("hessian", model, [batch(model)], loss)
    assert split(operator) is None
    found = solve_blocks(operator, Lanczos(1e-3), seed=0)
    for block in find_blocks(model):
        top = float(torch.linalg.eigvalsh(explicit_hessian(model, block, batch(model), loss))[-1])
        assert abs(found[block.name]["eigenvalue"].value - top) <= found[block.name]["eigenvalue"].error + 1e-9 * abs(
            top
        )
