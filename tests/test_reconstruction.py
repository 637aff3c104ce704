"""Reconstruction against brute force, closed forms and raw files: roundings, units, curvature, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import pytest
import torch
from networks import NETWORKS, build, samples
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn import functional as F

import hawq
from hawq.costs import plan_cost
from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, original_weight, quantize, weight_quantizer
from hawq.reconstruction import BRECQ, AdaRound, Descent, QDrop, find_units, reconstruct
from hawq.reconstruction.cache import Recorder, plan_store
from hawq.reconstruction.dropping import mixed
from hawq.reconstruction.fisher import output_curvature
from hawq.reconstruction.passes import Passes
from hawq.reconstruction.rounding import SoftRounding
from hawq.records import BitPlan, Precision

METHODS = {"descent": Descent, "adaround": AdaRound, "brecq": BRECQ, "qdrop": QDrop}
QUANTIZERS = {
    "lsq": LSQ(),
    "lsq per tensor": LSQ(per_channel=False),
    "uniform": Uniform(),
    "uniform of V1": Uniform("minmax", "minmax", per_channel=False, symmetric=False),
    "uniform percentile": Uniform("percentile", symmetric=False),
    "dorefa": DoReFa(),
    "pact": PACT(),
    "rvquant": RVQuant(),
}
LONGER = {"iterations": 40, "batch_size": 16, "num_samples": 32, "lr": 0.05}
SHORT = {"iterations": 12, "batch_size": 16, "num_samples": 32}


def settings_for(method, **given):
    """A method's settings; descent has none of an optimiser."""
    allowed = {field.name for field in dataclasses.fields(METHODS[method]) if field.init}
    return METHODS[method](**{key: value for key, value in given.items() if key in allowed})


def plan_for(blocks, weights, activations):
    precisions = {block.name: Precision(weights, activations) for block in blocks}
    return BitPlan(precisions, "test", plan_cost(blocks, precisions))


def prepared(name="residual", weights=3, activations=4, dtype=torch.float32, **how):
    model, inputs = build(name, dtype), samples(32, dtype)[0]
    blocks = hawq.find_blocks(model, inputs[:1], **how)
    return model, blocks, plan_for(blocks, weights, activations), inputs


def linear(seed, inputs=12, outputs=1):
    """A linear layer and correlated inputs with a mean."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, outputs)).eval()
    nn.init.normal_(model[0].weight, generator=generator)
    mix = torch.randn(inputs, inputs, generator=generator)
    return model, torch.randn(64, inputs, generator=generator) @ mix * 0.3 + 0.3


def squared_error(network, model, inputs):
    with torch.no_grad():
        return float((network(inputs) - model(inputs)).double().square().mean())


@torch.no_grad()
def brute_force(network, model, inputs):
    """The least error over all 2^n choices of rounding each weight down or up."""
    layer = network[0]
    weight = original_weight(layer).detach()
    scale, low, high = weight_quantizer(layer).grid(weight)
    half = low - low.floor()
    down = (weight / scale - half).floor() + half
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=weight.numel()))).view(-1, *weight.shape)
    candidates = (down + choices).clamp(low, high) * scale
    errors = [
        torch.einsum("koi,ni->kno", part - weight, inputs).square().mean((1, 2)) for part in candidates.split(4096)
    ]
    return float(torch.cat(errors).min())


def excess(seed, inputs, outputs, bits, settings):
    """Errors of rounding to nearest, of AdaRound and of the best roundings of a linear layer."""
    model, entering = linear(seed, inputs, outputs)
    blocks = hawq.find_blocks(model, entering[:1])
    plan = plan_for(blocks, bits, 32)
    nearest = quantize(model, blocks, plan, [entering])
    network, (row,) = reconstruct(model, blocks, plan, [entering], settings)
    most, found = squared_error(nearest, model, entering), squared_error(network, model, entering)
    assert row["nearest"] == pytest.approx(most, rel=1e-4) and row["error"] == pytest.approx(found, rel=1e-4)
    return most, found, brute_force(nearest, model, entering)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_twelve_weights_get_the_best_of_all_their_roundings(seed, bits):
    settings = AdaRound(iterations=2, num_samples=64)
    for shape in ((12, 1), (6, 2)):
        most, found, least = excess(seed, *shape, bits, settings)
        assert found == pytest.approx(least, rel=1e-4) and found <= most


def test_descent_alone_gets_the_best_of_twelve_weights_and_leaves_what_is_no_quadratic_problem(caplog):
    most, found, least = excess(0, 12, 1, 3, Descent(num_samples=64))
    assert found == pytest.approx(least, rel=1e-4) and found < most
    model, inputs = nn.Sequential(Doubled(3, 2, 3)).eval(), torch.randn(8, 3, 8, 8)
    blocks = hawq.find_blocks(model, inputs[:1])
    plan = plan_for(blocks, 3, 32)
    with caplog.at_level(logging.WARNING):
        network, (row,) = reconstruct(model, blocks, plan, [inputs], Descent())
    assert row["error"] == row["nearest"]
    assert "0 stays rounded to nearest" in caplog.text
    with torch.no_grad():
        assert torch.equal(network(inputs), quantize(model, blocks, plan, [inputs])(inputs))


def test_rows_that_are_not_enumerated_come_near_the_best(monkeypatch):
    monkeypatch.setattr("hawq.reconstruction.descent._ENUMERATED_UP_TO", 0)
    settings, left = AdaRound(iterations=20, batch_size=64, num_samples=64), []
    for seed in range(4):
        most, found, least = excess(seed, 11, 1, 3, settings)
        assert least * (1 - 1e-4) <= found <= most
        left.append((found - least) / (most - least))
    assert sum(left) / len(left) < 0.5, left


class Doubled(nn.Conv2d):
    """Its outputs are twice a product."""

    def forward(self, x):
        return 2 * super().forward(x)


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 3, padding=1),
    "depthwise": nn.Conv2d(3, 3, 3, stride=2, groups=3),
    "grouped": nn.Conv2d(6, 4, 2, groups=2, bias=False),
    "dilated": nn.Conv2d(3, 2, (2, 3), dilation=2, padding=(1, 0)),
    "padded in another way": nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"),
    "same": nn.Conv2d(3, 2, (3, 2), padding="same", dilation=(1, 2)),
    "valid": nn.Conv2d(3, 2, 3, padding="valid"),
    "padded by itself": Conv2dSame(3, 2, 3, stride=2),
    "padded by itself, depthwise": Conv2dSame(3, 3, 3, stride=2, groups=3, bias=False),
    "with standardised weights": StdConv2d(3, 2, 3),
    "with more than a product": Doubled(3, 2, 3),
    "transposed": nn.ConvTranspose2d(3, 2, 3),
    "one-dimensional": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 5)),
}


INEXACT = ("transposed", "one-dimensional", "with standardised weights", "with more than a product")


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_descent_knows_the_error_of_a_convolution(kind):
    """No change of a single weight lowers the error any further, as plain forward passes find."""
    layer = CONVOLUTIONS[kind]
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    model = nn.Sequential(nn.Identity(), *(layer if isinstance(layer, nn.Sequential) else [layer])).eval()
    inputs = torch.randn(8, 6 if kind == "grouped" else 3, 6, 6, generator=generator)
    inputs += 1  # for white noise alone the nearest points are the best
    blocks = hawq.find_blocks(model, inputs[:1])
    plan, settings = plan_for(blocks, 3, 4), AdaRound(**SHORT | {"num_samples": 8})
    network, (row,) = reconstruct(model, blocks, plan, [inputs], settings)
    exact = kind not in INEXACT
    assert row["error"] < row["nearest"] or not exact, row
    quantized = network[-1]
    weight = original_weight(quantized).data  # changed in place below
    best = squared_error(network, model, inputs)
    assert best == pytest.approx(row["error"], rel=1e-4)
    scale, low, high = (x.expand_as(weight) for x in weight_quantizer(quantized).grid(weight))
    codes, floats = weight_quantizer(quantized).codes(weight)[0], model[-1].weight.detach() / scale
    better = 0
    for place in itertools.product(*map(range, weight.shape)):
        other = floats[place].floor() + floats[place].ceil() - codes[place]
        if low[place] <= other <= high[place] and low[place] < floats[place] < high[place]:
            weight[place] = other * scale[place]
            better += squared_error(network, model, inputs) < best * (1 - 1e-5)
            weight[place] = codes[place] * scale[place]
    assert better == 0 or not exact


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_weight_ends_on_a_neighbouring_point_of_its_grid(quantizer, bits):
    model, inputs = linear(3, 6, 4)
    blocks = hawq.find_blocks(model, inputs[:1])
    made = QUANTIZERS[quantizer]
    nearest = quantize(model, blocks, plan_for(blocks, bits, 32), [inputs], made)
    network, (row,) = reconstruct(
        model, blocks, plan_for(blocks, bits, 32), [inputs], AdaRound(**SHORT | {"lr": 0.5}), quantizer=made
    )
    weight, old = original_weight(network[0]).detach(), original_weight(nearest[0]).detach()
    codes, scale, low = weight_quantizer(network[0]).codes(weight)
    before, old_scale, old_low = weight_quantizer(nearest[0]).codes(old)
    large = weight_quantizer(nearest[0]).is_large(old) if made.name == "rvquant" else torch.zeros_like(old) > 0
    assert row["error"] <= row["nearest"]
    torch.testing.assert_close((scale, low), (old_scale, old_low))
    assert bool(((codes - before).abs() <= 1)[~large].all()) and torch.equal(weight[large], old[large])
    if row["error"] < row["nearest"]:
        assert bool((codes != before).any())
        if made.name in ("lsq", "uniform", "rvquant"):
            assert torch.equal(network[0].weight, weight)  # Q(W) = W: on the grid


def test_some_roundings_of_each_quantiser_change():
    """So that the test above says something."""
    for made in QUANTIZERS.values():
        model, inputs = linear(3, 6, 4)
        blocks = hawq.find_blocks(model, inputs[:1])
        settings = AdaRound(**SHORT | {"lr": 0.5})
        _, (row,) = reconstruct(model, blocks, plan_for(blocks, 2, 32), [inputs], settings, quantizer=made)
        assert row["error"] < row["nearest"], made


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_soft_rounding_begins_at_the_weights_and_ends_decided(quantizer):
    layer = nn.Linear(8, 5)
    made = QUANTIZERS[quantizer].weight(3)
    made.initialise(layer.weight.detach())
    rounding = SoftRounding(made, layer.weight.detach())
    squashed = layer.weight.tanh() if quantizer in ("dorefa", "pact") else layer.weight
    made.hold(layer.weight.detach())
    soft = rounding(layer.weight)
    assert rounding.num_free() > 10
    torch.testing.assert_close(soft[rounding.is_free], squashed[rounding.is_free], atol=1e-5, rtol=1e-4)
    assert float(rounding.undecided(2.0).detach()) > 1
    rounding.variable.data = torch.where(torch.rand(5, 8) < 0.5, -9.0, 9.0)
    assert float(rounding.undecided(2.0)) == 0
    torch.testing.assert_close(made(rounding.rounded(layer.weight)), rounding(layer.weight))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_block_is_reconstructed_and_packed_bit_for_bit(name, method, tmp_path):
    model, blocks, plan, inputs = prepared(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network, rows = reconstruct(model, blocks, plan, [inputs], settings_for(method, **LONGER))
    units = [row["unit"] for row in rows]
    layers = [layer for block in blocks for layer in block.layers]
    assert sorted(units) == sorted(layers if method in ("descent", "adaround") else [block.name for block in blocks])
    assert all(row["error"] <= row["nearest"] for row in rows) and any(row["error"] < row["nearest"] for row in rows)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = hawq.load(hawq.save(network, tmp_path / "model.safetensors"), model)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), network(inputs))
    assert not any(type(module).__name__ in ("SoftRounding", "Dropped") for module in network.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_remembered_changes_nothing(name, method, monkeypatch):
    model, blocks, plan, inputs = prepared(name)
    settings, batches = settings_for(method, **SHORT), [inputs[:20], inputs[20:]]
    expected = reconstruct(model, blocks, plan, batches, settings)
    monkeypatch.setattr(Passes, "go_to", lambda self, unit: None)
    network, rows = reconstruct(model, blocks, plan, batches, settings)
    assert rows == expected[1]
    with torch.no_grad():
        assert torch.equal(network(inputs), expected[0](inputs))


@pytest.mark.parametrize("kind", ["layer", "block"])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_before_a_unit_are_not_computed_again(name, kind):
    model, blocks, plan, inputs = prepared(name)
    network = quantize(model, blocks, plan, [inputs])
    units = find_units(network, blocks, inputs, kind)
    passes, began = Passes(network, units, [inputs], 1.0), []
    first = weight_quantizer(network.get_submodule(units[0].layers[0]))
    first.register_forward_hook(lambda *_: began.append(1))
    for unit in units[1:]:
        passes.go_to(unit)
        plain = Recorder(network, unit, [inputs], False)
        again = Recorder(network, unit, [inputs], False, passes.run)
        (column,), (same,) = plain.inputs().columns, again.inputs().columns
        assert torch.equal(column.values, same.values)
        assert torch.equal(plain.outputs().values, again.outputs().values)
    assert len(began) == 1 + 2 * len(units[1:])  # to remember what follows it, and by the plain passes


def test_what_takes_too_much_memory_is_computed_again():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    units = find_units(network, blocks, inputs)
    passes, began = Passes(network, units, [inputs], 1e-9), []
    weight_quantizer(network.get_submodule(units[0].layers[0])).register_forward_hook(lambda *_: began.append(1))
    passes.go_to(units[1])
    Recorder(network, units[1], [inputs], False, passes.run).outputs()
    assert len(began) == 2


def test_residual_quantisers_leave_layers_as_units(caplog):
    """The steps of such a network are listed one by one, so that blocks are no modules any more."""
    model, blocks, plan, inputs = prepared()
    with caplog.at_level(logging.WARNING):
        _, rows = reconstruct(model, blocks, plan, [inputs], BRECQ(**SHORT), quantizer=LSQ(residuals=8))
    assert [row["unit"] for row in rows] == ["stem", "unit.conv1", "unit.conv2", "head"]
    assert "unit is no module of its own with one output: reconstructed layer by layer" in caplog.text


class Twice(nn.Module):
    """A layer that runs twice, and a mask that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.masked = nn.Linear(6, 6), nn.Linear(6, 6), Masked()

    def forward(self, x):
        x = self.twice(self.twice(self.first(x)).relu())
        return self.masked(x, mask=torch.ones(4, 6))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x, mask):
        rows = x[:, None, :].expand(-1, 4, -1) * mask
        return self.b(self.a(rows.flatten(0, 1)).relu()).view(len(x), 4, 4).mean(1)


def test_units_of_networks_that_are_no_plain_chain(caplog):
    model, inputs = Twice().eval(), torch.randn(32, 6)
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 3, 4), [inputs])
    with caplog.at_level(logging.WARNING):
        units = find_units(network, blocks, inputs)
    assert [(unit.name, unit.layers, unit.batched) for unit in units] == [
        ("first", ("first",), (True,)),
        ("masked", ("masked.a", "masked.b"), (True, False)),
    ]
    assert "twice: rounded to nearest, not reconstructed" in caplog.text
    layers = find_units(network, blocks, inputs, "layer")
    assert [unit.name for unit in layers] == ["first", "masked.a", "masked.b"]
    _, rows = reconstruct(model, blocks, plan_for(blocks, 3, 4), [inputs], QDrop(**SHORT))
    assert [row["unit"] for row in rows] == ["first", "masked"]


class Idle(nn.Module):
    """A layer that no forward calls, and dropout."""

    def __init__(self):
        super().__init__()
        self.idle, self.first, self.drop, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.drop(self.first(x).relu()))


def test_a_network_in_train_mode_with_blocks_that_were_never_traced():
    model, inputs = Idle(), torch.randn(32, 6)
    blocks = hawq.find_blocks(model)
    network, rows = reconstruct(model, blocks, plan_for(blocks, 3, 4), [(inputs, None)], BRECQ(**SHORT))
    assert [row["unit"] for row in rows] == ["first", "head"] and network.training and model.training
    assert [block.name for block in network.quantization.blocks] == ["first", "head"]
    again = reconstruct(model.eval(), blocks, plan_for(blocks, 3, 4), [inputs], BRECQ(**SHORT))[1]
    assert rows == again  # nothing was dropped


def test_a_plan_of_another_model_is_refused():
    model, blocks, plan, inputs = prepared()
    with pytest.raises(ValueError, match="the plan is for another model"):
        reconstruct(model, blocks[:2], plan, [inputs], BRECQ(**SHORT))


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("layer", ["stem", "unit", "head"]),
        ("network", ["stem", "unit", "head"]),
        ([r"unit|stem", "head"], ["stem", "unit", "head"]),
        (["stem", r"unit\.conv1", r"unit\.conv2", "head"], ["stem", "unit", "head"]),
        ([r"stem|unit\.conv1", "unit.conv2|head"], ["stem", "unit", "head"]),
    ],
    ids=str,
)
def test_units_follow_the_blocks(granularity, expected):
    model, blocks, plan, inputs = prepared(granularity=granularity)
    network = quantize(model, blocks, plan, [inputs])
    assert [unit.name for unit in find_units(network, blocks, inputs)] == expected


SINGLY = ["stem", "unit.conv1", "unit.conv2", "head"]


@pytest.mark.parametrize(
    ("groups", "expected", "told"),
    [
        ([["stem", "unit.conv1"], ["unit.conv2", "head"]], SINGLY, "layer by layer"),
        ([["stem", "unit.conv1"], ["unit.conv2"], ["head"]], SINGLY, "layer by layer"),
        ([SINGLY[:3], ["head"]], ["stem", "unit", "head"], "in the blocks of the network itself"),
        ([["unit.conv1"], ["unit.conv2"]], ["unit"], None),
        ([["unit.conv2"]], ["unit.conv2"], None),
    ],
    ids=str,
)
def test_blocks_that_cut_across_those_of_the_network(groups, expected, told, caplog):
    model, _, _, inputs = prepared()
    blocks = tuple(hawq.Block(f"block {number}", tuple(layers), 100) for number, layers in enumerate(groups))
    network = quantize(model, blocks, plan_for(blocks, 3, 4), [inputs])
    with caplog.at_level(logging.WARNING):
        units = find_units(network, blocks, inputs)
    assert [unit.name for unit in units] == expected
    assert [layer for unit in units for layer in unit.layers] == [layer for layers in groups for layer in layers]
    assert told is None or f"block 0 is no module of its own with one output: reconstructed {told}" in caplog.text


@pytest.mark.parametrize("granularity", ["layer", "network"])
@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_the_networks_own_whatever_shares_its_bits(name, granularity):
    if (name, granularity) == ("tied", "layer"):
        pytest.skip("two layers with one weight have the same bits")
    model, blocks, plan, inputs = prepared(name)
    expected = find_units(quantize(model, blocks, plan, [inputs]), blocks, inputs)
    model, blocks, plan, inputs = prepared(name, granularity=granularity)
    network = quantize(model, blocks, plan, [inputs])
    assert find_units(network, blocks, inputs) == expected
    layers = find_units(network, blocks, inputs, "layer")
    assert sorted(layer for unit in layers for layer in unit.layers) == sorted(
        layer for unit in expected for layer in unit.layers
    )
    _, rows = reconstruct(model, blocks, plan, [inputs], BRECQ(**SHORT))
    assert [row["unit"] for row in rows] == [unit.name for unit in expected]


def test_attention_is_reconstructed():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0), nn.Linear(8, 3)).eval()
    inputs = torch.randn(24, 5, 8)
    blocks = hawq.find_blocks(model, inputs[:1])
    rows = reconstruct(model, blocks, plan_for(blocks, 3, 4), [inputs], AdaRound(**SHORT))[1]
    assert [row["unit"] for row in rows][:2] == ["0.self_attn", "0.self_attn.out_proj"]
    assert all(row["error"] <= row["nearest"] for row in rows)
    assert len(reconstruct(model, blocks, plan_for(blocks, 3, 4), [inputs], BRECQ(**SHORT))[1]) == len(blocks)


def test_curvature_of_outputs_is_the_gauss_newton_diagonal():
    model, inputs = build("residual"), samples(6)[0]
    blocks = hawq.find_blocks(model, inputs[:1])
    network = quantize(model, blocks, plan_for(blocks, 4, 4), [inputs])
    units = find_units(network, blocks, inputs)
    found = output_curvature(model, units, [inputs], 300, seed=1)
    expected = torch.zeros(4, 6, 6, dtype=torch.float64)
    for image in inputs:
        middle = model.unit(model.stem(image[None]))
        tail = lambda z: model.head(z.mean(dim=(2, 3)))[0]  # noqa: E731
        p = tail(middle).softmax(0).detach()
        jacobian = torch.autograd.functional.jacobian(tail, middle)[:, 0]  # (classes, C, H, W)
        curvature = torch.diag(p) - torch.outer(p, p)
        expected += torch.einsum("kchw,kl,lchw->chw", jacobian, curvature, jacobian)
    torch.testing.assert_close(found["unit"][0], expected / expected.mean(), rtol=0.2, atol=0.02)
    assert {name: float(weights.mean()) for name, weights in found.items()} == pytest.approx(
        {unit.name: 1.0 for unit in units}
    )


@pytest.mark.parametrize("draw", range(3))
def test_random_vectors_have_the_curvature_of_the_loss(draw):
    """E[vvᵀ] = diag(p) − ppᵀ over all signs."""
    logits = torch.randn(3, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
    p = logits.softmax(0)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    vectors = p.sqrt() * signs - p * (p.sqrt() * signs).sum(1, keepdim=True)
    hessian = torch.autograd.functional.hessian(lambda z: F.kl_div(z.log_softmax(0), p, reduction="sum"), logits)
    torch.testing.assert_close(vectors.T @ vectors / len(signs), hessian)


class Kept:
    """A checkpoint in memory that stops after some saves."""

    def __init__(self, stop_after=None):
        self.state, self._left = None, stop_after

    def load(self):
        return self.state

    def save(self, state):
        self.state = torch.load(_through_a_file(state), weights_only=True)
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def _through_a_file(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("quantizer", ["lsq", "uniform"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_reconstruction_ends_where_an_undisturbed_one_does(method, stop_after, quantizer):
    model, blocks, plan, inputs = prepared()
    settings, made = settings_for(method, **SHORT, bias_correction=True), QUANTIZERS[quantizer]
    expected, expected_rows = reconstruct(model, blocks, plan, [inputs], settings, quantizer=made, seed=3)
    kept = Kept(stop_after)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, blocks, plan, [inputs], settings, quantizer=made, seed=3, checkpoint=kept)
    network, rows = reconstruct(model, blocks, plan, [inputs], settings, quantizer=made, seed=3, checkpoint=kept)
    assert rows == expected_rows
    states = network.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        same = torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key]
        assert same, key


def test_the_seed_decides():
    model, blocks, plan, inputs = prepared("mlp")
    runs = [reconstruct(model, blocks, plan, [inputs], QDrop(**SHORT), seed=seed)[1] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_store_holds_what_enters_and_leaves():
    model, blocks, plan, inputs = prepared()
    network = quantize(model, blocks, plan, [inputs])
    unit = find_units(network, blocks, inputs)[1]
    assert (unit.name, unit.elements) == ("unit", 2 * 4 * 6 * 6)
    for halve, tolerance in ((False, 0.0), (True, 2e-3)):
        recorder = Recorder(model, unit, list(inputs.split(12)), halve)
        entering, leaving = recorder.inputs(), recorder.outputs()
        assert leaving.values.dtype == (torch.float16 if halve else torch.float32)
        with torch.no_grad():
            expected = model.stem(inputs)
            torch.testing.assert_close(entering.at(slice(None))[0], expected, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(
                leaving.at(slice(3, 9)), model.unit(expected)[3:9], rtol=tolerance, atol=tolerance
            )
    with torch.no_grad():
        model.stem.weight *= 1e5
    assert Recorder(model, unit, [inputs], True).inputs().columns[0].values.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_store_keeps_the_memory_format(layout):
    model, blocks, plan, inputs = prepared()
    model, inputs = model.to(memory_format=layout), inputs.contiguous(memory_format=layout)
    unit = find_units(quantize(model, blocks, plan, [inputs]), blocks, inputs)[1]
    for halve in (False, True):
        recorder = Recorder(model, unit, list(inputs.split(5)), halve)
        with torch.no_grad():
            expected = model.stem(inputs)
        for places in (slice(2, 7), torch.tensor([6, 1, 3])):
            for stored in (recorder.inputs().columns[0], recorder.outputs()):
                assert stored.at(places).stride() == expected[places].stride()
            torch.testing.assert_close(recorder.inputs().at(places)[0], expected[places], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("room", "expected"),
    [(4000, (10, False)), (3999, (10, True)), (2000, (10, True)), (1000, (5, True)), (1, (2, True))],
)
def test_memory_limit(room, expected):
    assert plan_store(10, 100, room / 2**30) == expected


def test_fewer_images_are_used_beyond_the_limit(caplog):
    model, blocks, plan, inputs = prepared()
    settings = AdaRound(**SHORT | {"memory_limit_gib": 20 * 2 * 252 / 2**30})
    with caplog.at_level(logging.WARNING):
        _, rows = reconstruct(model, blocks, plan, [inputs], settings)
    assert [row["images"] for row in rows] == [20, 17, 17, 32]
    assert "17 of 32 images fit into the memory limit" in caplog.text


def laid_out(layout):
    """20,000 or so values in a shape and memory layout."""
    if layout == "channels last":
        return torch.zeros(2, 16, 25, 25).to(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.zeros(2, 201, 100)[:, ::2, ::2]
    return torch.zeros(20_003)


@pytest.mark.parametrize("layout", ["channels last", "strided", "plain"])
@pytest.mark.parametrize("drop", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_dropping(drop, layout):
    generator, zeros = torch.Generator().manual_seed(0), laid_out(layout)
    first, second = (mixed(zeros, torch.ones_like(zeros), drop, generator) for _ in range(2))
    assert first.shape == zeros.shape
    assert first.is_contiguous(memory_format=torch.channels_last) == (layout == "channels last")
    deviation = 4 * (drop * (1 - drop) / zeros.numel()) ** 0.5
    assert float(first.mean()) == pytest.approx(drop, abs=deviation)
    assert float((first * second).mean()) == pytest.approx(drop**2, abs=deviation)  # drawn anew
    neighbours = first.flatten()[1:] * first.flatten()[:-1]  # of the same 64 bits
    assert float(neighbours.mean()) == pytest.approx(drop**2, abs=1.5 * deviation)


def test_steps_are_trained_only_where_asked():
    model, blocks, plan, inputs = prepared("mlp")
    calibrated = quantize(model, blocks, plan, [inputs]).state_dict()
    for settings, moves in ((BRECQ(**SHORT, step_lr=1e-2), True), (BRECQ(**SHORT, step_lr=0.0), False)):
        state = reconstruct(model, blocks, plan, [inputs], settings)[0].state_dict()
        steps = [key for key in state if key.endswith("input_quantizer.scale")]
        assert steps and any(not torch.equal(state[key], calibrated[key]) for key in steps) == moves


def test_bias_correction_restores_the_means():
    model, inputs = linear(1, 6, 4)
    blocks = hawq.find_blocks(model, inputs[:1])
    plan, settings = plan_for(blocks, 2, 4), AdaRound(iterations=0, num_samples=64, bias_correction=True)
    network, _ = reconstruct(model, blocks, plan, [inputs], settings)
    plain = quantize(model, blocks, plan, [inputs])
    with torch.no_grad():
        torch.testing.assert_close(network(inputs).mean(0), model(inputs).mean(0))
        assert float((plain(inputs).mean(0) - model(inputs).mean(0)).abs().max()) > 1e-2


def test_folded_batch_norm_keeps_its_statistics():
    model, blocks, plan, inputs = prepared()
    folded = reconstruct(model, blocks, plan, [inputs], BRECQ(**SHORT, batch_norm="folded"))[0]
    carried = reconstruct(model, blocks, plan, [inputs], BRECQ(**SHORT))[0]
    assert torch.equal(folded.unit.bn1.running_mean, model.unit.bn1.running_mean)
    assert not torch.equal(carried.unit.bn1.running_mean, model.unit.bn1.running_mean)


def test_float_blocks_stay_float():
    model, blocks, _, inputs = prepared()
    precisions = {block.name: Precision(32, 32) for block in blocks} | {"unit": Precision(3, 32)}
    plan = BitPlan(precisions, "test", plan_cost(blocks, precisions))
    network, rows = reconstruct(model, blocks, plan, [inputs], BRECQ(**SHORT))
    assert [row["unit"] for row in rows] == ["unit"]
    assert torch.equal(network.stem.weight, model.stem.weight)


class Counting:
    """Progress that counts."""

    def __init__(self):
        self.seen = {}

    def task(self, title, total, *, done=0):
        self.title = title
        self.seen[title] = [total, done]
        return self

    def __enter__(self):
        title = self.title
        return type("Task", (), {"advance": lambda _, steps=1, note="": self._add(title, steps)})()

    def __exit__(self, *_):
        return None

    def _add(self, title, steps):
        self.seen[title][1] += steps


@pytest.mark.parametrize("method", METHODS)
def test_every_pass_is_told(method):
    model, blocks, plan, inputs = prepared()
    progress = Counting()
    reconstruct(model, blocks, plan, [inputs], settings_for(method, **SHORT), progress=progress)
    assert {"calibration", "reconstruction"} <= progress.seen.keys()
    assert all(total == done for total, done in progress.seen.values()), progress.seen


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 0.01), ({"iterations": 200}, 0.05), ({"iterations": 5}, 0.1), ({"iterations": 0}, 0.1), ({"lr": 0.3}, 0.3)],
    ids=str,
)
def test_the_learning_rate_follows_the_iterations(given, expected):
    assert BRECQ(**given).rounding_lr() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": -1}, "iterations=-1 is out of range"),
        ({"num_samples": 1}, "num_samples=1 is out of range"),
        ({"drop": 1.5}, "drop=1.5 is out of range"),
        ({"lr": float("nan")}, "lr=nan is out of range"),
        ({"units": "stage"}, "units='stage' is unknown: give layer or block"),
        ({"batch_norm": "none"}, "batch_norm='none' is unknown: give carried or folded"),
        ({"memory_limit_gib": 0}, "memory_limit_gib=0 is out of range"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        QDrop(**wrong)
