"""End-to-end tuning: what it may change, what stays, when it is undone, and that it goes on where it was stopped."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from networks import NETWORKS, NUM_CLASSES
from test_reconstruction import QUANTIZERS, Kept, plan_for, prepared

import hawq
from hawq.quantization import original_weight, quantize, weight_quantizer
from hawq.reconstruction import Descent, Tuning, reconstruct, tune
from hawq.reconstruction.tuning import chosen_loss

TUNING = Tuning(epochs=6, lr=0.02, batch_size=8, loss="kl", temperature=4.0)


def quantised_layers(network):
    return {name: layer for name, layer in network.named_modules() if weight_quantizer(layer) is not None}


def codes(network):
    layers = quantised_layers(network).items()
    return {name: weight_quantizer(layer).codes(original_weight(layer))[0] for name, layer in layers}


def error(model, network, inputs, temperature=4.0):
    """The softened KL, or the relative squared error of the outputs, written down once more."""
    with torch.no_grad():
        wanted, found = model(inputs), network.eval()(inputs)
    if temperature is None:
        return float(((found - wanted) ** 2).sum() / (wanted**2).sum())
    p, q = (wanted / temperature).softmax(1), (found / temperature).softmax(1)
    return float(temperature**2 * (p * (p / q).log()).sum() / p[:, 0].numel())


@pytest.mark.parametrize(
    ("quantizer", "temperature"), [*((one, 4.0) for one in QUANTIZERS), ("lsq", 1.0), ("lsq", None)]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_come_closer_and_no_code_changes(name, quantizer, temperature):
    model, blocks, plan, inputs = prepared(name, dtype=torch.float64)
    untouched = copy.deepcopy(model.state_dict())
    network = quantize(model, blocks, plan, [inputs], QUANTIZERS[quantizer])
    old, old_codes = error(model, network, inputs, temperature), codes(network)
    own = {"loss": "kl", "temperature": temperature} if temperature else {"loss": "squared", "temperature": 1.0}
    rows = tune(model, network, inputs, dataclasses.replace(TUNING, **own))
    assert [row["loss"] for row in rows] == [own["loss"]] * 7
    errors = [row["error"] for row in rows]
    assert [row["step"] for row in rows] == list(range(7)) and {row["images"] for row in rows} == {len(inputs)}
    assert errors[0] == pytest.approx(old) and min(errors) == pytest.approx(error(model, network, inputs, temperature))
    assert min(errors) < 0.95 * old
    assert all(torch.equal(value, old_codes[layer]) for layer, value in codes(network).items()) and old_codes
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_changes_steps_biases_and_norms_alone():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    old = {name: value.clone() for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    tune(model, network, inputs, TUNING)
    changed = {name for name, value in old.items() if not torch.equal(value, network.state_dict()[name])}
    layers = ("stem", "unit.conv1", "unit.conv2", "head")
    weights = {f"{layer}.parametrizations.weight.{part}" for layer in layers for part in ("original", "0.scale")}
    steps = {f"{layer}.input_quantizer.scale" for layer in layers}
    norms = {f"unit.{norm}.{part}" for norm in ("bn1", "bn2") for part in ("weight", "bias")}
    assert changed == weights | steps | norms | {"head.bias"}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_end_on_points_of_their_grids(name):
    model, blocks, plan, inputs = prepared(name)
    network, _ = reconstruct(model, blocks, plan, [inputs], Descent(num_samples=32, batch_size=8))
    tune(model, network, [inputs], TUNING)
    for layer in quantised_layers(network).values():
        assert torch.equal(layer.weight, original_weight(layer))


def test_layers_that_share_a_weight_still_share_it():
    model, blocks, plan, inputs = prepared("tied")
    network = quantize(model, blocks, plan, [inputs])
    tune(model, network, inputs, TUNING)
    quantizers = [weight_quantizer(layer) for layer in quantised_layers(network).values()]
    assert len({id(one) for one in quantizers}) < len(quantizers)


def same_state(one, other):
    return all(torch.equal(x, other[key]) if isinstance(x, torch.Tensor) else x == other[key] for key, x in one.items())


def test_it_is_undone_where_it_makes_things_worse():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    old = copy.deepcopy(network.state_dict())
    before, *after = tune(model, network, inputs, Tuning(epochs=2, lr=1.0, batch_size=4))
    assert min(row["error"] for row in after) > before["error"]
    assert same_state(old, network.state_dict())


def test_the_epoch_with_the_lowest_error_is_kept():
    """With rates from small to much too large."""
    model, blocks, plan, inputs = prepared(dtype=torch.float64)
    kept = set()
    for lr in (0.01, 0.2, 0.5, 0.8, 1.0):
        network = quantize(model, blocks, plan, [inputs])
        settings = Tuning(epochs=3, lr=lr, batch_size=4, loss="kl", temperature=4.0)
        errors = [row["error"] for row in tune(model, network, inputs, settings)]
        assert error(model, network, inputs) == pytest.approx(min(errors), rel=1e-4)
        kept.add(errors.index(min(errors)))
    assert len(kept) > 1


def test_it_uses_images_of_its_own_and_tells_of_every_epoch():
    model, blocks, plan, inputs = prepared(dtype=torch.float64)
    network, _ = reconstruct(model, blocks, plan, [inputs], Descent(num_samples=8, batch_size=8))
    told = []
    rows = tune(model, network, [inputs], dataclasses.replace(TUNING, num_samples=24), on_row=told.append)
    assert told == rows and {row["images"] for row in rows} == {24}
    assert min(row["error"] for row in rows) == pytest.approx(error(model, network, inputs[:24]))


@pytest.mark.parametrize("finished", [1, 4])
def test_a_stopped_tuning_goes_on(finished):
    model, blocks, plan, inputs = prepared()
    settings = Tuning(epochs=5, lr=0.01, batch_size=8)
    expected = quantize(model, blocks, plan, [inputs])
    expected_rows = tune(model, expected, inputs, settings, seed=3)
    kept = Kept(finished)
    with pytest.raises(KeyboardInterrupt):
        tune(model, quantize(model, blocks, plan, [inputs]), inputs, settings, seed=3, checkpoint=kept)
    network, told = quantize(model, blocks, plan, [inputs]), []
    assert tune(model, network, inputs, settings, seed=3, checkpoint=kept, on_row=told.append) == expected_rows
    assert told == expected_rows[finished + 1 :]
    assert same_state(expected.state_dict(), network.state_dict())


def test_a_network_with_nothing_around_its_codes_stays_as_it_is(caplog):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Linear(5, 3, bias=False)).eval()
    inputs = torch.randn(16, 6)
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 3, 4), [inputs], QUANTIZERS["uniform"])
    (row,) = tune(model, network, inputs, TUNING)
    assert row["error"] > 0 and row["step"] == 0
    assert "nothing to tune" in caplog.text


def test_outputs_of_every_shape():
    """A network that gives positions, as segmentation does."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, NUM_CLASSES, 1)).eval()
    inputs = torch.randn(32, 3, 6, 6)
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 2, 3), [inputs])
    rows = tune(model, network, inputs, TUNING)
    least = min(row["error"] for row in rows)
    assert least == pytest.approx(error(model, network, inputs), rel=1e-3) and least < 0.95 * rows[0]["error"]


def test_outputs_that_are_no_scores_are_matched_by_their_squared_error():
    """A regression of one value, whose softmax is 1 whatever it is; and one of several."""
    torch.manual_seed(0)
    for outputs, classes in ((1, True), (3, False)):
        model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, outputs)).eval()
        inputs = torch.randn(32, 6)
        blocks = hawq.find_blocks(model, inputs[:1])
        network = quantize(model, blocks, plan_for(blocks, 2, 3), [inputs])
        rows = tune(model, network, inputs, TUNING, classes=classes)
        least = min(row["error"] for row in rows)
        assert least == pytest.approx(error(model, network, inputs, None), rel=1e-4) and least < 0.95 * rows[0]["error"]


@pytest.mark.parametrize("shape", [(40, 2), (40, 10), (9, 1000), (8, 5, 3, 3)])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
def test_the_kl_is_lowered_unless_the_float_network_is_too_sure(shape, scale):
    outputs = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=outputs.movedim(1, -1)).entropy().mean()
    assert chosen_loss(Tuning(), outputs) == ("kl" if entropy >= 0.1 * math.log(shape[1]) else "squared")
    assert [chosen_loss(Tuning(loss=loss), outputs) for loss in ("kl", "squared")] == ["kl", "squared"]
    assert chosen_loss(Tuning(loss="kl"), outputs, classes=False) == "squared"


@pytest.mark.parametrize(("scale", "loss"), [(1.0, "kl"), (1000.0, "squared")])
def test_the_loss_that_was_chosen_is_told(scale, loss):
    model, blocks, plan, inputs = prepared(dtype=torch.float64)
    model.head.weight.data *= scale
    network = quantize(model, blocks, plan, [inputs])
    rows = tune(model, network, inputs, dataclasses.replace(TUNING, loss="auto"))
    found = error(model, network, inputs, 4.0 if loss == "kl" else None)
    assert {row["loss"] for row in rows} == {loss} and rows[0]["error"] > found
    assert min(row["error"] for row in rows) == pytest.approx(found)


WRONG = [{"epochs": -1}, {"num_samples": 1}, {"batch_size": 0}, {"lr": 1.5}, {"temperature": 0.0}, {"loss": "mse"}]


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}={wrong[name]!r} is (out of range|unknown)"):
        Tuning(**wrong)
