"""Statistics of batch norm: measured anew over batches, carried over a change, frozen."""

import copy

import pytest
import torch
from networks import Dropped, batches_of, build, running
from sensitivities import plan_of
from torch import nn
from torch.optim.swa_utils import update_bn

from hawq.blocks import find_blocks
from hawq.quantization import CarriedBatchNorm, freeze_batch_norm, quantize, reestimate_batch_norm

INPUTS = [images for images, _ in batches_of(3, 8, torch.float64)]


def test_statistics_are_means_over_the_batches():
    """The first batch norm by hand: its mean and unbiased variance of each batch, equally weighted."""
    model = build("residual")
    reestimate_batch_norm(model, INPUTS)
    seen = [model.unit.conv1(model.stem(inputs)).transpose(0, 1).flatten(1) for inputs in INPUTS]
    assert torch.allclose(model.unit.bn1.running_mean, sum(x.mean(1) for x in seen) / 3)
    assert torch.allclose(model.unit.bn1.running_var, sum(x.var(1) for x in seen) / 3)


def test_all_layers_agree_with_pytorch():
    model, expected = build("residual"), build("residual")
    reestimate_batch_norm(model, INPUTS)
    update_bn(INPUTS, expected)
    assert torch.allclose(running(model), running(expected))
    assert not torch.allclose(running(model), running(build("residual")))


def test_dropout_stays_off_and_modes_are_put_back():
    model = Dropped().double().train()
    model.body[1].momentum = 0.25
    state = torch.random.get_rng_state()
    reestimate_batch_norm(model, INPUTS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules()) and model.body[1].momentum == 0.25


def test_a_layer_that_no_batch_reaches_keeps_its_statistics():
    model = build("residual")
    model.unit.unused = nn.BatchNorm2d(4).double()
    model.unit.unused.running_mean.fill_(7.0)
    before = copy.deepcopy(model.unit.unused.state_dict())
    reestimate_batch_norm(model, INPUTS)
    assert all(torch.equal(value, before[name]) for name, value in model.unit.unused.state_dict().items())
    untouched = copy.deepcopy(model.state_dict())
    reestimate_batch_norm(model, [])
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())


def test_carried_statistics_follow_a_linear_change():
    """y → 3y of one layer: mean + 2m₀, variance · 9; the layer behind it normalises by the batch and stays."""
    model = build("residual")
    measured, known = build("residual"), build("residual").unit.bn1
    reestimate_batch_norm(measured, INPUTS[:1])
    carried = CarriedBatchNorm(model, INPUTS[:1])
    with torch.no_grad():
        model.unit.conv1.weight.mul_(3)
    for _ in range(2):  # from the same start, however often
        carried.follow()
        assert torch.allclose(model.unit.bn1.running_mean, known.running_mean + 2 * measured.unit.bn1.running_mean)
        assert torch.allclose(model.unit.bn1.running_var, known.running_var * 9, rtol=1e-3)  # up to eps
        assert torch.allclose(model.unit.bn2.running_mean, build("residual").unit.bn2.running_mean, atol=1e-3)


@pytest.mark.parametrize("batches", [INPUTS, [INPUTS[0][:1]], []], ids=["batches", "one image", "none"])
def test_carried_statistics_stay_without_a_change(batches):
    model = build("residual")
    CarriedBatchNorm(model, batches).follow()
    assert torch.allclose(running(model), running(build("residual")), rtol=1e-12)


def test_quantising_carries_the_statistics():
    model = build("residual")
    blocks = find_blocks(model, INPUTS[0][:1])
    network = quantize(model, blocks, plan_of(blocks, 2, 4), INPUTS)
    before, after = copy.deepcopy(model), copy.deepcopy(network)
    reestimate_batch_norm(before, INPUTS)
    reestimate_batch_norm(after, INPUTS)
    for norm in ("unit.bn1", "unit.bn2"):
        old, new, first, second = (x.get_submodule(norm).running_mean for x in (model, network, before, after))
        assert torch.allclose(new, old + second - first) and not torch.allclose(new, old, atol=1e-3)


def test_frozen_layers_normalise_by_what_they_know():
    model = build("residual").train()
    freeze_batch_norm(model)
    before, outputs = running(model).clone(), model(INPUTS[0])
    assert torch.equal(running(model), before) and torch.equal(outputs, model.eval()(INPUTS[0]))
    model.train()(INPUTS[0])
    assert not torch.equal(running(model), before)
