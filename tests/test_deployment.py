"""Deployed files: what they hold, and that runtimes compute with it what PyTorch computes."""

import copy
import functools
import json

import numpy as np
import onnx
import pytest
import torch
from networks import build, samples
from onnx import TensorProto
from sensitivities import plan_of
from torch import nn

import hawq
from hawq.blocks import find_blocks
from hawq.deployment.folding import find_layers, fold_batch_norms
from hawq.deployment.graph import Graph
from hawq.deployment.grids import weight_grids
from hawq.deployment.integers import dyadic
from hawq.deployment.parity import Parity, layer_parity, reference_codes, refuse_wrong_layers
from hawq.deployment.runtimes import OnnxRuntime, available
from hawq.deployment.tracing import INPUT, trace
from hawq.deployment.writing import stored_codes, write_graph
from hawq.export import load, save
from hawq.progress import SILENT
from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, quantize
from hawq.quantization.residuals import add_residual_quantizers, enable_residual_quantizers

IMAGES = samples(8, torch.float32)[0]
PLAIN = OnnxRuntime(optimized=False)
QUANTIZERS = {repr(one): one for one in (LSQ(), Uniform(symmetric=False), DoReFa(), PACT(), RVQuant(10))}

pytestmark = pytest.mark.usefixtures("operators_read_once")


def quantized(name="residual", weights=4, activations=4, quantizer=None):
    model = build(name, torch.float32)
    blocks = find_blocks(model)
    return quantize(model, blocks, plan_of(blocks, weights, activations), [IMAGES], quantizer)


@functools.cache
def traced_once(name, quantizer=repr(LSQ()), weights=4, images=2):
    """A quantised network and its graph, which takes a second: for tests that change neither."""
    network = quantized(name, weights, 4, QUANTIZERS[quantizer])
    return network, trace(network, IMAGES[:images], 21)


def conv_network(convolution, gamma, before=False):
    """A convolution with a batch norm after or before it, and a second layer that reads its result."""
    torch.manual_seed(0)
    channels = convolution.in_channels if before else convolution.out_channels
    norm = nn.BatchNorm2d(channels)
    norm.weight.data = torch.tensor(gamma).repeat(channels)[:channels]
    norm.bias.data = torch.randn(channels)
    norm.running_mean, norm.running_var = torch.randn(channels) / 4, torch.rand(channels) + 0.5
    parts = [norm, convolution] if before else [convolution, norm]
    return nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(convolution.out_channels, 2, 1), nn.Flatten(), nn.Linear(72, 3))


def quantize_all(model, images, bits=4):
    blocks = find_blocks(model)
    return quantize(model.eval(), blocks, plan_of(blocks, bits, 4), [images])


def run(model, images):
    return PLAIN.open(model.SerializeToString())({INPUT: images.numpy()})[0]


@pytest.mark.parametrize("bits", [[1, 2, 3], [4, 5, 8]])
@pytest.mark.parametrize("quantizer", [LSQ(), LSQ(balanced_bits=8), LSQ(per_channel=False), DoReFa()])
def test_stored_integers_are_the_packed_codes(bits, quantizer, tmp_path):
    loaded = load(
        save(quantized("depthwise", bits, 4, quantizer), tmp_path / "packed"), build("depthwise", torch.float32)
    )
    written = write_graph(trace(loaded, IMAGES[:2], 21))
    assert len(written.weights) >= (3 if max(bits) < 8 else 2)
    values = {value.name: value for value in written.model.graph.initializer}
    for one in written.weights:
        stored, weight = stored_codes(values[one.codes]), loaded.get_submodule(one.layer).weight.detach().numpy()
        stored = stored.T if one.transposed else stored
        codes = weight_grids(loaded)[one.layer].codes
        assert np.array_equal(stored, codes * one.multiple)
        steps = weight_grids(loaded)[one.layer].steps.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.array_equal((stored * (steps / one.multiple)).astype(np.float32), weight)
        fits = codes.min() * one.multiple >= -8 and codes.max() * one.multiple <= 7
        assert one.storage == ("int4" if fits else "int8")
        assert (values[one.codes].data_type == TensorProto.INT4) == fits


@pytest.mark.parametrize("count", [1, 2, 7])
def test_int4_is_packed_as_onnx_reads_it(count):
    from hawq.deployment.writing import _integers

    codes = np.arange(count) - 4
    value = _integers(codes, TensorProto.INT4)
    assert np.array_equal(onnx.numpy_helper.to_array(value).astype(int), codes)
    assert np.array_equal(stored_codes(value), codes)


@pytest.mark.parametrize("gamma", [[1.5, 0.5], [-1.0, 0.7], [0.0, 1.0, -2.0]], ids=["positive", "negative", "zero"])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(3, 6, 3, padding=1, groups=3),
    ],
    ids=["plain", "bias", "depthwise"],
)
@pytest.mark.parametrize("bits", [8])
def test_batch_norm_is_folded_exactly(convolution, gamma, bits):
    network = quantize_all(conv_network(copy.deepcopy(convolution), gamma), IMAGES, bits)
    written = write_graph(trace(network, IMAGES[:2], 21))
    assert "BatchNormalization" not in {node.op_type for node in written.model.graph.node}
    np.testing.assert_allclose(run(written.model, IMAGES), network(IMAGES).detach().numpy(), atol=2e-5, rtol=1e-4)


def test_a_batch_norm_before_a_convolution_stays():
    network = quantize_all(conv_network(nn.Conv2d(3, 6, 3, padding=1), [1.5, -0.5], before=True), IMAGES)
    written = write_graph(trace(network, IMAGES[:2], 21))
    assert [node.op_type for node in written.model.graph.node].count("BatchNormalization") == 1
    np.testing.assert_allclose(run(written.model, IMAGES), network(IMAGES).detach().numpy(), atol=2e-5, rtol=1e-4)


def test_a_shared_convolution_output_keeps_its_batch_norm():
    """What the batch norm reads is read elsewhere too, so folding would change that."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.head((self.norm(y) * y).mean((2, 3)))

    torch.manual_seed(0)
    model = Shared().eval()
    traced = trace(model, IMAGES[:2], 21, quantized=False)
    graph = Graph(traced.model)
    fold_batch_norms(graph, find_layers(graph))
    assert [node.op_type for node in graph.nodes].count("BatchNormalization") == 1


@pytest.mark.parametrize("target", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["residual", "branches", "depthwise", "mlp"])
@pytest.mark.parametrize("runtime", available(), ids=lambda one: one.name)
def test_runtimes_compute_each_layer_as_pytorch(name, runtime, target):
    network, traced = traced_once(name)
    written = write_graph(copy.deepcopy(traced), target)
    codes = reference_codes(network, IMAGES, traced.activations)
    parities = layer_parity(written, runtime, IMAGES.numpy(), codes)
    assert {one.key for one in parities} == {key for key, _ in codes}
    assert max(one.largest for one in parities) <= 1
    if runtime != OnnxRuntime():  # which rounds biases to whole steps
        refuse_wrong_layers(parities, runtime.name)


@pytest.mark.parametrize("target", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_any_batch_size_and_quantiser(quantizer, target):
    network, traced = traced_once("residual", quantizer, (8, 3, 4), images=1)
    written = write_graph(copy.deepcopy(traced), target)
    for size in (1, 3, 8):
        np.testing.assert_allclose(run(written.model, IMAGES[:size]), network(IMAGES[:size]).detach(), atol=1e-4)


class Strided(nn.Module):
    """A strided convolution beside another one on the same input, as where residual networks halve their images."""

    def __init__(self, kernel, strides, dims=2, **more):
        super().__init__()
        convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
        self.stem = convolution(3, 8, 3, padding=1)
        self.wide = convolution(8, 8, 3, stride=strides, padding=1)
        self.short = convolution(8, 8, kernel, stride=strides, padding=kernel // 2, **more)
        self.norm, self.head = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.wide(x) + self.norm(self.short(x))).relu()
        return self.head(x.flatten(2).mean(2))


def both(traced):
    """The graph for each runtime."""
    return [write_graph(copy.deepcopy(traced), target) for target in ("onnxruntime", "openvino")]


STRIDED = [
    ((1, 2), {}, True),
    ((1, 3), {}, True),
    ((1, (1, 2)), {}, True),
    ((1, 2), {"groups": 4}, True),
    ((1, 2), {"groups": 8, "bias": False}, True),
    ((1, 2), {"dims": 1}, True),
    ((1, 2), {"dims": 3}, True),
    ((1, 1), {}, False),
    ((3, 2), {}, False),
]


@pytest.mark.parametrize(("sizes", "more", "moved"), STRIDED, ids=str)
def test_a_layer_of_single_elements_reads_only_those_that_it_takes(sizes, more, moved):
    torch.manual_seed(0)
    model = Strided(*sizes, **more).eval()
    images = torch.randn(8, 3, *[7] * more.get("dims", 2))
    network = quantize_all(model, images)
    traced = trace(network, images[:2], 21)
    codes, outputs = reference_codes(network, images, traced.activations), network(images).detach().numpy()
    for written in both(traced):
        assert ("MaxPool" in {node.op_type for node in written.model.graph.node}) == moved
        strides = {one.key: one.strides for one in written.activations}
        assert bool(strides["short"]) == moved and not strides["wide"]
        np.testing.assert_allclose(run(written.model, images), outputs, atol=2e-5, rtol=1e-4)
        for runtime in available():
            if runtime != OnnxRuntime():  # which rounds biases to whole steps
                refuse_wrong_layers(layer_parity(written, runtime, images.numpy(), codes), runtime.name)


class Clipped(nn.Module):
    """Activations with limits between a convolution and a quantised layer, and where something else reads them."""

    def __init__(self, kinds, shared=False):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.kinds, self.shared = nn.Sequential(*kinds), shared

    def forward(self, x):
        y = self.kinds(self.first(x))
        z = self.second(y).mean((2, 3))
        return self.head(z + y.mean((2, 3)) if self.shared else z)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "kinds",
    [
        [nn.ReLU()],
        [nn.ReLU6()],
        [nn.Hardtanh(-0.3, 0.4)],
        [nn.Hardtanh(0.2, 0.6)],
        [nn.Hardtanh(-0.5, 0.5), nn.ReLU()],
        [nn.ReLU(), nn.Hardtanh(0.1, 9.0)],
        [nn.ReLU6(), nn.Hardtanh(-7, 0.3)],
    ],
    ids=str,
)
def test_limits_of_activations_become_limits_of_codes(kinds, bits):
    torch.manual_seed(1)
    network = Clipped(kinds).eval()
    blocks = find_blocks(network)
    network = quantize(network, blocks, plan_of(blocks, 4, bits), [IMAGES])
    traced = trace(network, IMAGES[:2], 21)
    codes, outputs = reference_codes(network, IMAGES, traced.activations), network(IMAGES).detach().numpy()
    graphs = both(traced)
    for written in graphs:
        operators = [node.op_type for node in written.model.graph.node]
        assert "Relu" not in operators and operators.count("Clip") <= len(written.activations)
        refuse_wrong_layers(layer_parity(written, PLAIN, IMAGES.numpy(), codes), PLAIN.name)
        np.testing.assert_allclose(run(written.model, IMAGES), outputs, atol=2e-5, rtol=1e-4)
    if traced.activations["second"].storage == "uint8":  # ONNX Runtime has no kernels for signed ones
        model, layers = graphs[0].model.SerializeToString(), graphs[0].layers
        assert OnnxRuntime().kernels(model, {INPUT: IMAGES.numpy()}, layers)[0]["first"].integer


def test_limits_that_something_else_reads_stay():
    network = quantize_all(Clipped([nn.Hardtanh(0.1, 6.0)], shared=True).eval(), IMAGES)
    written = write_graph(trace(network, IMAGES[:2], 21))
    values = {value.name: onnx.numpy_helper.to_array(value) for value in written.model.graph.initializer}
    clips = [node for node in written.model.graph.node if node.op_type == "Clip"]
    assert [values[node.input[1]] for node in clips if values[node.input[1]].dtype == np.float32] == [np.float32(0.1)]
    np.testing.assert_allclose(run(written.model, IMAGES), network(IMAGES).detach().numpy(), atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(len(available()) < 3, reason="OpenVINO is not installed")
def test_openvino_computes_all_layers_of_a_strided_network_in_integers():
    network = quantize_all(Strided(1, 2).eval(), IMAGES)
    written = write_graph(trace(network, IMAGES[:2], 21), "openvino")
    kernels, _ = available()[2].kernels(written.model.SerializeToString(), {INPUT: IMAGES.numpy()}, written.layers)
    assert all(kernels[name].integer for name in ("stem", "wide", "short"))


@pytest.mark.parametrize("opset", [21, 23])
def test_the_file_and_its_report(opset, tmp_path):
    network = quantized()
    before = network(IMAGES).detach()
    found = hawq.deploy(network, tmp_path / "new" / "model.onnx", IMAGES, opset=opset, timed_batches=())
    model = onnx.load(tmp_path / "new" / "model.onnx")
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert found.size_bytes == (tmp_path / "new" / "model.onnx").stat().st_size
    report = json.loads((tmp_path / "new" / "deploy.json").read_text())
    assert report["schema"] == "hawq.deployed/1" and len(report["layers"]) == 4
    assert all(layer["weight_storage"] == "int4" for layer in report["layers"])
    assert torch.equal(network(IMAGES), before)


def test_a_wrong_weight_is_refused_by_name(tmp_path, monkeypatch):
    import hawq.deployment.deploying as deploying

    def damaged(traced, *options):
        written = write_graph(traced, *options)
        first = next(one for one in written.weights if one.layer == "unit.conv1")
        value = next(value for value in written.model.graph.initializer if value.name == first.codes)
        value.raw_data = bytes([value.raw_data[0] ^ 1]) + value.raw_data[1:]
        return written

    monkeypatch.setattr(deploying, "write_graph", damaged)
    with pytest.raises(ValueError, match=r"unit\.conv1: 1 of 144 stored codes"):
        hawq.deploy(quantized(), tmp_path / "model.onnx", IMAGES, timed_batches=())
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("parity", "bits", "refused"),
    [
        ((0, 1000, 0), 4, False),
        ((100, 10**6, 1), 4, False),
        ((150, 10**6, 1), 4, True),
        ((150, 10**6, 1), 2, True),
        ((150, 10**6, 1), 5, False),
        ((1600, 10**6, 1), 8, False),
        ((1700, 10**6, 1), 8, True),
        ((1, 10**6, 2), 8, True),
        ((1700, 10**6, 1, 1, True), 8, True),
        ((9000, 10**6, 1, 3, False), 8, False),
        ((9000, 10**6, 1, 4, False), 8, True),
        ((9000, 10**6, 2, 1, False), 8, True),
    ],
)
def test_limits_of_parity(parity, bits, refused):
    """A grid of one more bit has twice as many borders, where rounding of sums may decide; equal codes that are taken
    over from another grid lie on a border all together."""
    if refused:
        with pytest.raises(ValueError, match="layer1"):
            refuse_wrong_layers([Parity("layer1", *parity)], "a runtime", bits={"layer1": bits})
    else:
        refuse_wrong_layers([Parity("layer1", *parity)], "a runtime", bits={"layer1": bits})


def test_grids_that_only_take_over_codes():
    network = residual_network()
    traced = trace(network, IMAGES[:2], 21)
    written = write_graph(traced)
    codes = reference_codes(network, IMAGES, traced.activations)
    found = {one.key: one.has_products for one in layer_parity(written, PLAIN, IMAGES.numpy(), codes)}
    assert not found["stem"] and found["unit.conv2"]  # the image; and what the convolution before it makes
    assert not found["unit.conv1"] and found["residual_quantizers.after_unit_bn2"], found


@pytest.mark.parametrize(
    ("products", "expected"),
    [
        ({"p": ["a"], "q": ["x", "b"]}, {"p": "a", "q": "b"}),
        ({"p": ["a/WithoutBiases", "m"], "q": ["b/Multiply"]}, {"p": "a", "q": "b"}),
        ({"p": ["m"], "q": ["b"]}, {"p": "a", "q": "b"}),
        ({"p": ["m"], "q": ["n"]}, {"p": "a", "q": "b"}),
        ({"p": ["m"], "q": ["n"], "r": ["b"]}, {"p": "", "q": "", "r": "b"}),
        ({"q": ["b"]}, {"q": "b"}),
    ],
    ids=str,
)
def test_openvino_names_of_products_belong_to_layers(products, expected):
    from hawq.deployment.runtimes import _owners

    assert _owners(products, ["a", "b"]) == expected


@pytest.mark.parametrize("must_agree", [True, False])
def test_a_runtime_that_is_less_accurate_is_refused_or_told(must_agree, caplog):
    from hawq.deployment.measuring import _accuracy, reference_classes

    images = torch.eye(4).repeat(50, 1)
    labels = images.argmax(1)
    data = [(images[:100], labels[:100]), (images[100:], labels[100:])]
    reference = reference_classes(nn.Flatten(), data)

    def session(feeds):
        found = feeds["images"].copy()
        found[:10] = 0.0
        found[:10, 0] = 1.0
        return [found]

    if must_agree:
        with pytest.raises(ValueError, match=r"a runtime is right on 9.* % of the images and PyTorch on 100.00 %"):
            _accuracy("a runtime", session, data, reference, SILENT, True)
    else:
        found = _accuracy("a runtime", session, data, reference, SILENT, False)
        assert found["reference_accuracy"] == 100.0 and found["accuracy"] < 96
        assert "give profile=integer" in caplog.text


@pytest.mark.parametrize(
    ("profile", "runtime", "speedup", "hint"),
    [
        ("exact", "onnxruntime", 0.5, "give deploy.profile=integer"),
        ("exact", "openvino", 0.9, ""),
        ("integer", "openvino", 0.9, "give deploy.profile=exact"),
        ("integer", "onnxruntime", 0.9, ""),
        ("exact", "onnxruntime", 1.1, None),
    ],
)
def test_a_slower_file_is_told_with_what_to_do(profile, runtime, speedup, hint, caplog):
    from hawq.deployment.deploying import _warn
    from hawq.deployment.records import RuntimeRecord

    record = RuntimeRecord(runtime, {}, {}, 3, 4, 0.0, 0.0, 0, milliseconds={"1": {"speedup": speedup}})
    _warn(record, profile)
    assert ("slower than float at batch 1" in caplog.text) == (hint is not None)
    assert (hint or "") in caplog.text and ("give" in caplog.text) == bool(hint)


@pytest.mark.parametrize("given", [{"profile": "fast"}, {"opset": 13}, {"profile": "integer"}])
def test_bad_arguments(given, tmp_path):
    with pytest.raises(ValueError, match=next(reversed(given)) if given != {"profile": "integer"} else "calibration"):
        hawq.deploy(quantized(), tmp_path / "model.onnx", IMAGES, **given)


def residual_network():
    network = add_residual_quantizers(quantized(), LSQ(), 8)
    enable_residual_quantizers(network, [IMAGES])
    return network


def test_the_integer_profile_adds_in_integers():
    network = residual_network()
    written = write_graph(trace(network, IMAGES[:2], 21), "onnxruntime")
    kernels, others = OnnxRuntime().kernels(written.model.SerializeToString(), {INPUT: IMAGES.numpy()}, written.layers)
    assert [kernels[name].name for name in ("stem", "unit.conv1", "unit.conv2")] == ["QLinearConv"] * 3
    requantized = sum(one.op_type == "Add" for one in written.model.graph.node) - 1
    assert requantized > 0 and others["QLinearAdd"] == 1 + requantized and "Add" not in others
    np.testing.assert_allclose(run(written.model, IMAGES), network(IMAGES).detach().numpy(), atol=1e-4)


def test_residual_quantisers_are_trained_stored_and_loaded(tmp_path):
    network = quantized(quantizer=LSQ(residuals=8))
    assert all(one.enabled for one in network.residual_quantizers.values()) and len(network.residual_quantizers) >= 3
    network(IMAGES).sum().backward()
    assert all(one.scale.grad is not None for one in network.residual_quantizers.values())
    loaded = load(save(network, tmp_path / "packed"), build("residual", torch.float32))
    again = copy.deepcopy(loaded)
    assert torch.equal(loaded(IMAGES), network.eval()(IMAGES)) and torch.equal(again(IMAGES), loaded(IMAGES))
    assert load(save(again, tmp_path / "again"), build("residual", torch.float32))(IMAGES).equal(loaded(IMAGES))
    found = hawq.deploy(loaded, tmp_path / "model.onnx", IMAGES, profile="integer", timed_batches=())
    assert found.runtimes[0].other_kernels["QLinearAdd"] == 2  # one adds nothing, and changes the grid


@pytest.mark.parametrize("ratio", [1.0, 0.3, 1e-6, 2.0**-8, 5.7, 900.0])
def test_dyadic_numbers(ratio):
    numerator, shift = dyadic(np.array(ratio), 15)
    assert abs(int(numerator)) <= 2**15 and abs(float(numerator) * 2.0 ** -float(shift) / ratio - 1) <= 2.0**-15


def test_integers_alone_follow_pytorch():
    integers = hawq.integer_network(quantized(), [IMAGES])
    first = integers(IMAGES)
    assert first.dtype == np.int64 and np.array_equal(first, integers(IMAGES))
    with torch.no_grad():
        expected = integers.network(IMAGES).numpy()
    ratio = (first * expected).sum() / (first.astype(float) ** 2).sum()
    assert np.corrcoef(first.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.abs(first * ratio - expected).max() < 0.1 * np.abs(expected).max()
    assert all(integers.seen_bits[name] <= bits <= 32 for name, bits in integers.proven_bits.items())


def test_an_accumulator_beyond_32_bits_is_refused():
    from hawq.deployment.integers import Integers
    from hawq.deployment.products import gemm

    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="wide", transB=1)
    rows = Integers(np.full((1, 2**17), 127), np.array(1.0), -128, 127)
    x = Integers(np.full((1, 2**17), 255), np.array(1.0), 0, 255)
    with pytest.raises(ValueError, match="wide: its sums may need more than 32 bits"):
        gemm(node, x, rows)
