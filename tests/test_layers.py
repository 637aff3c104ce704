"""Which layers are quantised, and how they may be called: transposed, grouped, by keyword, several times, never."""

import logging

import pytest
import torch
from networks import explicit_hessian, samples
from sensitivities import plan_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

import hawq
from hawq.blocks import block_layers, find_blocks, trace_blocks
from hawq.errors import UserError
from hawq.export import packed_overhead
from hawq.quantization import BIT_WIDTHS, LSQ, Uniform, attach, input_quantizer, weight_errors, weight_quantizer
from hawq.unquantized import unquantized

LAYERS = {
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 7), (1, 6, 1)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1), (4, 5, 5), (1, 6, 1, 1)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (4, 3, 3, 3), (1, 6, 1, 1, 1)),
    "transposed of one channel": (lambda: nn.ConvTranspose2d(1, 6, 3), (1, 5, 5), (1, 6, 1, 1)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), (1, 3, 1, 1)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), (4, 5, 5), (4, 1, 1, 1)),
    "transposed multiplied": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=4), (4, 5, 5), (4, 1, 1, 1)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), (6, 1, 1, 1)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), (4, 1, 1, 1)),
    "1d": (lambda: nn.Conv1d(4, 6, 3), (4, 7), (6, 1, 1)),
    "3d": (lambda: nn.Conv3d(4, 6, 2), (4, 3, 3, 3), (6, 1, 1, 1, 1)),
    "linear": (lambda: nn.Linear(4, 6), (3, 4), (6, 1)),
}


def made(name):
    make, shape, scales = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), make()).eval()
    return model, torch.randn(3, *shape), scales


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_accumulates_are_pytorchs(name):
    model, x, _ = made(name)
    (block,) = find_blocks(model, x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert block.macs == counter.get_total_flops() // 2 // len(x)
    assert block.num_weights == model[1].weight.numel()
    assert block.num_activations == 0 and block.image_layers == ("1",)
    assert unquantized(model, (block,), x) == ()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), Uniform("minmax", symmetric=False)], ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_each_channel_has_a_grid_of_its_own_that_survives_the_file(name, quantizer, bits, tmp_path):
    model, x, scales = made(name)
    blocks = find_blocks(model, x)
    network = hawq.quantize(model, blocks, plan_of(blocks, bits, 8), [x], quantizer)
    weight = network[1].weight
    assert weight_quantizer(network[1]).grid(weight)[0].shape == scales
    axis = next(axis for axis, length in enumerate(scales) if length > 1)
    rows = weight.movedim(axis, 0).flatten(1)
    assert all(len(row.unique()) <= 2**bits for row in rows)
    other = quantizer.weight(bits)  # of a weight whose channels come first
    turned = model[1].weight.detach().movedim(axis, 0).contiguous()
    other.initialise(turned)
    torch.testing.assert_close(rows, other(turned).flatten(1))
    path = hawq.save(network, tmp_path / "packed")
    loaded = hawq.load(path, made(name)[0])
    assert torch.equal(loaded(x), network(x))
    assert torch.equal(hawq.load(hawq.save(loaded, tmp_path / "again"), model)(x), network(x))
    assert path.stat().st_size <= packed_overhead(model, blocks, quantizer) + -(-weight.numel() * bits // 8)


@pytest.mark.parametrize("name", LAYERS)
def test_weight_errors_are_those_of_the_network_that_is_made(name):
    model, x, _ = made(name)
    blocks = find_blocks(model, x)
    errors = weight_errors(block_layers(model, blocks[0]), LSQ())
    for bits in BIT_WIDTHS:
        network = attach(model, blocks, plan_of(blocks, bits), LSQ())
        weight_quantizer(network[1]).initialise(model[1].weight)
        expected = (network[1].weight - model[1].weight).double().square().sum()
        assert errors[bits] == pytest.approx(float(expected))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(input=self.conv(input=x).relu().mean((2, 3)))


class ByPosition(ByKeyword):
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_a_call_by_keyword_is_a_call():
    x, labels = samples(8, torch.float32)
    results = []
    for kind in (ByKeyword, ByPosition):
        torch.manual_seed(0)
        model = kind().eval()
        sensitivity = hawq.analyze(model, find_blocks(model, x), [(x, labels)], activations=True)
        network = hawq.quantize(model, sensitivity.blocks, plan_of(sensitivity.blocks, 3, 3), [x])
        assert input_quantizer(network.head).enabled
        results.append((sensitivity.blocks, [row.activation_errors for row in sensitivity.rows], network(x)))
    (blocks, errors, outputs), (other_blocks, other_errors, other_outputs) = results
    assert blocks == other_blocks and errors == other_errors and torch.equal(outputs, other_outputs)


class Partial(nn.Module):
    """One layer is never called, one is read without being called, some weights belong to no layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.spare, self.read = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
        self.unit = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 5)})
        self.table, self.memory, self.both = nn.Embedding(5, 4), nn.LSTM(4, 4, batch_first=True), nn.Bilinear(4, 4, 4)
        self.free = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.conv(x).mean((2, 3)) + self.table.weight[0]
        x = self.memory(x[:, None])[0][:, 0]
        x = nn.functional.linear(self.both(x, x), self.read.weight)
        return self.unit["used"](nn.functional.linear(x, self.free))


FLOAT = {"spare.weight": 16, "read.weight": 16, "unit.unused.weight": 20, "table.weight": 20, "free": 16}
FLOAT |= {"memory.weight_ih_l0": 64, "memory.weight_hh_l0": 64, "both.weight": 64}


def test_what_no_call_reaches_stays_float_by_name(caplog):
    model, x = Partial(), samples(4, torch.float32)[0]
    with caplog.at_level(logging.WARNING):
        blocks = find_blocks(model, x)
    assert [layer for block in blocks for layer in block.layers] == ["conv", "unit.used"]
    assert sum(block.num_weights for block in blocks) == 4 * 27 + 16
    parts = {part.name: part.num_weights for part in unquantized(model, blocks, x) if part.num_weights}
    assert parts == FLOAT
    assert "never calls spare, read, unit.unused" in caplog.text
    assert all(name in caplog.text for name in FLOAT)
    share = 100 * sum(FLOAT.values()) / (sum(FLOAT.values()) + 4 * 27 + 16)
    assert f"{share:.1f} % of the weights" in caplog.text


@pytest.mark.parametrize("verb", ["find", "analyze", "quantize"])
def test_each_way_to_trace_leaves_them_out(verb):
    model, (x, labels) = Partial().eval(), samples(4, torch.float32)
    blocks = find_blocks(model, x if verb == "find" else None)
    if verb == "analyze":
        blocks = hawq.analyze(model, blocks, [(x, labels)], solver=hawq.RandomScore()).blocks
    network = hawq.quantize(model, blocks, plan_of(blocks, 4, 4), [x])
    found = network.quantization
    assert [layer for block in found.blocks for layer in block.layers] == ["conv", "unit.used"]
    assert found.plan.precisions.keys() == {"conv", "unit.used"}
    assert found.plan.cost.num_weights == 4 * 27 + 16
    assert torch.equal(network.read.weight, model.read.weight)
    assert all(input_quantizer(network.get_submodule(name)).enabled for name in ("conv", "unit.used"))


def test_a_forward_that_calls_nothing_is_refused():
    class Idle(ByKeyword):
        def forward(self, x):
            return x.mean()

    with pytest.raises(UserError, match="calls none of the layers conv, head"):
        find_blocks(Idle(), torch.randn(2, 3, 4, 4))


def test_an_example_without_samples_is_refused():
    with pytest.raises(UserError, match="no samples"):
        find_blocks(ByPosition(), torch.randn(0, 3, 4, 4))


def test_a_lazy_layer_is_refused_until_it_has_a_weight():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UserError, match=r"1 is lazy .* run one forward"):
        find_blocks(model)
    model(torch.randn(2, 5))
    assert find_blocks(model)[0].num_weights == 15


def test_complex_layers_are_none_of_ours():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4, dtype=torch.cfloat))
    assert [block.name for block in find_blocks(model)] == ["0"]


class InPlace(ByPosition):
    """Normalises its own input, in place."""

    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


def test_the_callers_images_are_left_alone_and_seen_once():
    x = samples(8, torch.float32)[0]
    before, networks = x.clone(), []
    for kind, inputs in ((InPlace, x), (ByPosition, (x - 0.5) / 0.25)):
        torch.manual_seed(0)
        model = kind().eval()
        blocks = find_blocks(model, inputs)
        networks.append(hawq.quantize(model, blocks, plan_of(blocks, 4, 4), [inputs]))
        unquantized(model, blocks, inputs)
    assert torch.equal(x, before)
    assert torch.equal(networks[0].head.input_quantizer.scale, networks[1].head.input_quantizer.scale)


REMEDIES = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
    "old weight norm": weight_norm,
    "old spectral norm": spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}
VERBS = {
    "analyze": lambda m, blocks, x, y: hawq.analyze(m, blocks, [(x, y)]),
    "quantize": lambda m, blocks, x, y: hawq.quantize(m, blocks, plan_of(blocks, 4, 4), [x]),
    "attach": lambda m, blocks, x, y: attach(m, blocks, plan_of(blocks, 4, 4), LSQ()),
    "packed_overhead": lambda m, blocks, x, y: packed_overhead(m, blocks),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("make", REMEDIES.values(), ids=REMEDIES)
def test_a_computed_weight_is_refused_and_its_remedy_works(make, verb):
    x, labels = samples(4, torch.float32)
    model = ByPosition()
    make(model.conv)
    model.eval()(x)
    blocks, outputs = find_blocks(model), model(x)
    with pytest.raises(UserError, match=r"conv\.weight is computed from other parameters") as refused:
        VERBS[verb](model, blocks, x, labels)
    remedy = str(refused.value).rpartition("with ")[2]
    exec(remedy, {"torch": torch, "model": model})
    torch.testing.assert_close(model(x), outputs)
    VERBS[verb](model, trace_blocks(model, blocks, x), x, labels)


def test_other_computed_weights_are_refused():
    model = ByPosition()
    del model.conv.weight
    model.conv.weight = torch.randn(4, 3, 3, 3)
    with pytest.raises(UserError, match=r"conv\.weight is computed .* torch\.nn\.Parameter"):
        hawq.quantize(model, find_blocks(model), plan_of(find_blocks(model), 4, 4), samples(4, torch.float32)[0])


def test_parametrised_biases_and_unused_layers_are_no_obstacle(tmp_path):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    x = samples(4, torch.float32)[0]
    model = ByPosition().eval()
    parametrize.register_parametrization(model.head, "bias", Doubled())
    blocks = find_blocks(model, x)
    network = hawq.quantize(model, blocks, plan_of(blocks, 4, 4), [x])
    other = ByPosition()
    parametrize.register_parametrization(other.head, "bias", Doubled())
    assert torch.equal(hawq.load(hawq.save(network, tmp_path / "packed"), other)(x), network(x))


@pytest.mark.parametrize("name", LAYERS)
def test_curvature_is_that_of_the_explicit_hessian(name):
    """Each kind of layer behind another one, so that its input is no image."""
    make, shape, _ = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), make(), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    x, labels = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 2])
    model(x)
    blocks = find_blocks(model, x)
    solver = hawq.Lanczos(tolerance=1e-6, max_iterations=300, start_from="random")
    found = hawq.analyze(model, blocks, [(x, labels)], solver=solver)
    exact = torch.linalg.eigvalsh(explicit_hessian(model, blocks[0], (x, labels), nn.functional.cross_entropy))[-1]
    assert found.row("1").eigenvalue.value == pytest.approx(float(exact), rel=1e-4)
