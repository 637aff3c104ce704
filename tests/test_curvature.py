"""Block Hessians against explicit float64 ones."""

from functools import cache

import pytest
import torch
from networks import NETWORKS, build, cut, explicit_hessian, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import BlockHessian
from hawq.sensitivity import block_weights

NUM_SAMPLES = 7


def hessian_of(model, batches, loss=F.cross_entropy):
    return BlockHessian(model, {b.name: block_weights(model, b) for b in find_blocks(model)}, batches, loss)


def random_vectors(hessian, model):
    generator = torch.Generator().manual_seed(3)
    return {block.name: hessian.random_vector(block.name, generator) for block in find_blocks(model)}


@cache
def explicit_hessians(name):
    model, batch = build(name), samples(NUM_SAMPLES)
    return {block.name: explicit_hessian(model, block, batch, F.cross_entropy) for block in find_blocks(model)}


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_those_of_the_explicit_hessian(name, sizes):
    model, batch = build(name), samples(NUM_SAMPLES)
    hessian = hessian_of(model, cut(batch, sizes))
    vectors = random_vectors(hessian, model)
    for _ in range(2):  # a single batch keeps its graph for the second time
        products = hessian.products(vectors)
    for block, dense in explicit_hessians(name).items():
        torch.testing.assert_close(products[block], dense @ vectors[block], rtol=1e-9, atol=1e-12)
    assert hessian.mean_loss == pytest.approx(F.cross_entropy(model(batch[0]), batch[1]).item(), rel=1e-12)
    assert hessian.num_samples == NUM_SAMPLES


def test_the_users_loss_is_used():
    model, batch = build("residual"), samples(NUM_SAMPLES)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=0.2) + outputs.square().mean()

    hessian = hessian_of(model, [batch], loss)
    vectors = random_vectors(hessian, model)
    (head,) = [block for block in find_blocks(model) if block.name == "head"]
    expected = explicit_hessian(model, head, batch, loss) @ vectors["head"]
    torch.testing.assert_close(hessian.products({"head": vectors["head"]})["head"], expected)


@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
def test_a_linear_loss_of_a_linear_network_is_flat(sizes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()
    hessian = hessian_of(model, cut(samples(NUM_SAMPLES), sizes), lambda outputs, targets: outputs.mean())
    assert not hessian.products({"1": torch.ones(324, dtype=torch.float64)})["1"].any()


@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
def test_the_model_is_left_as_it_was(sizes):
    model = build("residual").train()
    model.unit.bn2.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hessian = hessian_of(model, cut(samples(NUM_SAMPLES), sizes))
    vectors = random_vectors(hessian, model)
    first, second = hessian.products(vectors), hessian.products(vectors)
    assert all(torch.equal(first[name], second[name]) for name in vectors)
    assert first["stem"].any()  # frozen for training, not for the analysis
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"head.weight"}
    assert (model.head.weight.grad == 7).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="Hessian needs a finite"):
        hessian_of(build("mlp"), [samples(2)], lambda outputs, targets: outputs.sum() * 0 + value)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        hessian_of(build("mlp"), [])


def test_start_vectors_come_from_the_generator_alone():
    hessian = hessian_of(build("mlp"), [samples(2)])
    draws = [hessian.random_vector("3", torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert draws[0].shape == (20,)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
