"""Statistics of batch norm: measured anew over batches, and frozen late."""

import copy

import torch
from networks import Dropped, batches_of, build, running
from torch import nn
from torch.optim.swa_utils import update_bn

from hawq.finetuning import freeze_batch_norm, reestimate_batch_norm

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


def test_frozen_layers_normalise_by_what_they_know():
    model = build("residual").train()
    freeze_batch_norm(model)
    before, outputs = running(model).clone(), model(INPUTS[0])
    assert torch.equal(running(model), before) and torch.equal(outputs, model.eval()(INPUTS[0]))
    model.train()(INPUTS[0])
    assert not torch.equal(running(model), before)
