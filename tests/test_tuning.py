"""End-to-end tuning: what it may change, what stays, when it is undone, and that it goes on where it was stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, NUM_CLASSES
from test_reconstruction import QUANTIZERS, SHORT, Kept, plan_for, prepared, settings_for

import hawq
from hawq.quantization import original_weight, quantize, weight_quantizer
from hawq.reconstruction import BRECQ, Descent, reconstruct
from hawq.reconstruction.tuning import tune

TUNED = {"tuning_epochs": 6, "tuning_lr": 0.02, "batch_size": 8, "num_samples": 32}


def quantised_layers(network):
    return {name: layer for name, layer in network.named_modules() if weight_quantizer(layer) is not None}


def codes(network):
    layers = quantised_layers(network).items()
    return {name: weight_quantizer(layer).codes(original_weight(layer))[0] for name, layer in layers}


def error(model, network, inputs):
    """The relative squared error of the outputs, written down once more."""
    with torch.no_grad():
        wanted, found = model(inputs), network.eval()(inputs)
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_come_closer_and_no_code_changes(name, quantizer):
    model, blocks, plan, inputs = prepared(name, dtype=torch.float64)
    untouched = copy.deepcopy(model.state_dict())
    network = quantize(model, blocks, plan, [inputs], QUANTIZERS[quantizer])
    old, old_codes = error(model, network, inputs), codes(network)
    before, after = tune(model, network, inputs, Descent(**TUNED), 0)
    assert before == pytest.approx(old) and after == pytest.approx(error(model, network, inputs))
    assert after < 0.95 * before
    assert all(torch.equal(value, old_codes[layer]) for layer, value in codes(network).items()) and old_codes
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_changes_steps_biases_and_norms_alone():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    old = {name: value.clone() for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    tune(model, network, inputs, Descent(**TUNED), 0)
    changed = {name for name, value in old.items() if not torch.equal(value, network.state_dict()[name])}
    layers = ("stem", "unit.conv1", "unit.conv2", "head")
    weights = {f"{layer}.parametrizations.weight.{part}" for layer in layers for part in ("original", "0.scale")}
    steps = {f"{layer}.input_quantizer.scale" for layer in layers}
    norms = {f"unit.{norm}.{part}" for norm in ("bn1", "bn2") for part in ("weight", "bias")}
    assert changed == weights | steps | norms | {"head.bias"}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_end_on_points_of_their_grids(name):
    model, blocks, plan, inputs = prepared(name)
    network, _ = reconstruct(model, blocks, plan, [inputs], Descent(**TUNED))
    for layer in quantised_layers(network).values():
        assert torch.equal(layer.weight, original_weight(layer))


def test_layers_that_share_a_weight_still_share_it():
    model, blocks, plan, inputs = prepared("tied")
    network = quantize(model, blocks, plan, [inputs])
    tune(model, network, inputs, Descent(**TUNED), 0)
    quantizers = [weight_quantizer(layer) for layer in quantised_layers(network).values()]
    assert len({id(one) for one in quantizers}) < len(quantizers)


def test_it_is_undone_where_it_makes_things_worse():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    old = copy.deepcopy(network.state_dict())
    settings = Descent(tuning_epochs=1, tuning_lr=1.0, batch_size=4, num_samples=32)
    before, after = tune(model, network, inputs, settings, 0)
    assert after == before
    for name, value in network.state_dict().items():
        assert torch.equal(value, old[name]) if isinstance(value, torch.Tensor) else value == old[name], name


def test_it_is_the_last_row_and_uses_images_of_its_own():
    model, blocks, plan, inputs = prepared()
    settings = Descent(num_samples=8, batch_size=8, tuning_epochs=4, tuning_lr=0.01, tuning_samples=24)
    _, plain = reconstruct(model, blocks, plan, [inputs], Descent(num_samples=8, batch_size=8))
    told = []
    network, rows = reconstruct(model, blocks, plan, [inputs], settings, on_row=told.append)
    assert rows[:-1] == plain and told == rows
    last = rows[-1]
    assert (last["step"], last["unit"], last["images"]) == (len(plain) + 1, "network", 24)
    assert last["error"] == pytest.approx(error(model, network, inputs[:24]), rel=1e-4)
    assert last["error"] < last["nearest"]


@pytest.mark.parametrize("method", ["descent", "brecq"])
@pytest.mark.parametrize("finished_passes", [1, 4])
def test_a_stopped_tuning_goes_on(method, finished_passes):
    model, blocks, plan, inputs = prepared()
    settings = settings_for(method, **SHORT, tuning_epochs=5, tuning_lr=0.01)
    expected, expected_rows = reconstruct(model, blocks, plan, [inputs], settings, seed=3)
    kept = Kept(len(expected_rows) - 1 + finished_passes)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, blocks, plan, [inputs], settings, seed=3, checkpoint=kept)
    network, rows = reconstruct(model, blocks, plan, [inputs], settings, seed=3, checkpoint=kept)
    assert rows == expected_rows
    for key, value in expected.state_dict().items():
        found = network.state_dict()[key]
        assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, key


def test_a_network_with_nothing_around_its_codes_stays_as_it_is(caplog):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Linear(5, 3, bias=False)).eval()
    inputs = torch.randn(16, 6)
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 3, 4), [inputs], QUANTIZERS["uniform"])
    before, after = tune(model, network, inputs, Descent(**TUNED), 0)
    assert before == after > 0
    assert "nothing to tune" in caplog.text


def test_outputs_of_every_shape():
    """A network that gives positions, as segmentation does."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, NUM_CLASSES, 1)).eval()
    inputs = torch.randn(32, 3, 6, 6)
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 2, 3), [inputs])
    before, after = tune(model, network, inputs, Descent(**TUNED), 0)
    assert after < 0.95 * before


@pytest.mark.parametrize("wrong", [{"tuning_epochs": -1}, {"tuning_samples": 1}, {"tuning_lr": 1.5}])
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}={wrong[name]} is out of range"):
        BRECQ(**wrong)
