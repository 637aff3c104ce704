"""The packed file: bit for bit the network that was saved, small, and refused where it does not belong."""

import copy
import json

import pytest
import timm
import torch
from networks import NETWORKS, Dropped, Fresh, batches_of, build, samples
from safetensors import safe_open
from sensitivities import plan_of
from torch import nn

import hawq.models  # noqa: F401 (registers resnet20 with timm)
from hawq.allocation import IntegerProgram
from hawq.blocks import find_blocks
from hawq.costs import checkpoint_bytes
from hawq.export import load, packed_overhead, read_about, save
from hawq.finetuning import FineTuning, finetune
from hawq.quantization import BIT_WIDTHS, LSQ, PACT, DoReFa, RVQuant, Uniform, quantize
from hawq.records import BlockSensitivity, Estimate, Sensitivity
from hawq.sensitivity import analyze

IMAGES = samples(8, torch.float32)[0]
QUANTIZERS = [LSQ(), LSQ(per_channel=False), Uniform(), Uniform(symmetric=False), Uniform("minmax", per_channel=False)]
QUANTIZERS += [Uniform("minmax", "minmax", per_channel=False, symmetric=False)]
QUANTIZERS += [DoReFa(), PACT(), RVQuant(10)]


def quantized(model, quantizer=None, bits=3, activations=4):
    blocks = find_blocks(model, IMAGES[:1])
    bit_widths = [1 + (bits - 1 + i) % 8 for i in range(len(blocks))]
    return quantize(model, blocks, plan_of(blocks, bit_widths, activations), [IMAGES], quantizer)


def saved_and_loaded(network, model, path):
    """The network as it comes back into the same architecture with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.fill_(3)
    return load(save(network, path), other)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_equal_bit_for_bit(name, quantizer, tmp_path):
    model = build(name, torch.float32)
    network = quantized(model, quantizer)
    loaded = saved_and_loaded(network, model, tmp_path / "model.safetensors")
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), network(IMAGES))
    assert not torch.equal(loaded(IMAGES), model(IMAGES))
    assert loaded.quantization == network.quantization


@pytest.mark.parametrize("activations", [1, 2, 32])
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_every_width(bits, activations, tmp_path):
    model = build("residual", torch.float32)
    network = quantized(model, bits=bits, activations=activations)
    assert torch.equal(saved_and_loaded(network, model, tmp_path / "model")(IMAGES), network(IMAGES))


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), DoReFa(), PACT(), RVQuant(10)], ids=repr)
@pytest.mark.parametrize("make", [Dropped, lambda: build("tied", torch.float32)], ids=["dropped", "tied"])
def test_a_fine_tuned_network(make, quantizer, tmp_path):
    model, batches = make(), batches_of(3, 8)
    sensitivity = analyze(model, find_blocks(model, IMAGES[:1]), batches, quantizer=quantizer)
    settings = FineTuning(max_steps=12, lr=0.2)
    plan = plan_of(sensitivity.blocks, 3)
    network, _ = finetune(model, sensitivity, plan, Fresh(batches), [IMAGES], settings, quantizer=quantizer)
    loaded = saved_and_loaded(network, model, tmp_path / "model")
    assert torch.equal(loaded(IMAGES), network.eval()(IMAGES))


def test_a_loaded_network_is_saved_as_small_again(tmp_path):
    model = build("residual", torch.float32)
    first = save(quantized(model), tmp_path / "first")
    loaded = load(first, model)
    second = save(loaded, tmp_path / "second")
    assert second.stat().st_size <= 1.01 * first.stat().st_size
    assert torch.equal(load(second, model)(IMAGES), loaded(IMAGES))


def test_the_file_is_as_small_as_its_bits(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 100))
    blocks = find_blocks(model)
    plan = plan_of(blocks, [8, 2, 3])
    path = save(quantize(model, blocks, plan, [IMAGES]), tmp_path / "model")
    channels = 64 + 64 + 100
    overhead = path.stat().st_size - plan.cost.weight_bytes
    assert channels * 4 < overhead < channels * 10 + 5000  # steps, biases and the header
    assert path.stat().st_size < checkpoint_bytes(model) / 8


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_size_is_predicted(name, quantizer, tmp_path):
    """Never too small, and too large only by digits in the header, whatever the plan turns out to be."""
    model, about = build(name, torch.float32), {"dataset": "digits"}
    blocks = find_blocks(model, IMAGES[:1])
    overhead = packed_overhead(model, blocks, quantizer, about)
    for bit_widths in ([2, 3, 7][: len(blocks)], [8, 5, 4][: len(blocks)]):
        plan = plan_of(blocks, bit_widths, 3)
        path = save(quantize(model, blocks, plan, [IMAGES], quantizer), tmp_path / "model", about)
        excess = overhead + plan.cost.weight_bytes - path.stat().st_size
        assert 0 <= excess <= 250
    before = build(name, torch.float32).state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_size_of_a_real_network_is_predicted_to_a_percent(tmp_path):
    model = timm.create_model("resnet20").eval()
    images = torch.randn(2, 3, 16, 16)
    blocks = find_blocks(model, images[:1])
    sensitivity = Sensitivity(
        tuple(BlockSensitivity(b, Estimate(1.0, 0.1, 3, True), {w: 4.0**-w for w in range(2, 9)}) for b in blocks),
        *("power", 2, 1.0),
        packed_overhead(model, blocks),
    )
    plan = IntegerProgram(110_000, "bytes").allocate(sensitivity)
    size = save(quantize(model, blocks, plan, [images]), tmp_path / "model").stat().st_size
    assert 0.99 * plan.cost.packed_bytes <= size <= plan.cost.packed_bytes <= 110_000
    assert size > 0.99 * 110_000


def test_facts_are_kept(tmp_path):
    about = {"mean": [0.5, 0.25, 0.125], "dataset": "digits"}
    assert read_about(save(quantized(build("mlp", torch.float32)), tmp_path / "model", about)) == about


def test_the_float_network_is_left_as_it_is(tmp_path):
    model = build("residual", torch.float32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load(save(quantized(model), tmp_path / "model"), model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: build("mlp", torch.float32), "missing .*1.weight.*unexpected .*head.weight"),
        (lambda: nn.Sequential(build("residual", torch.float32)), "missing .*0.head.bias.*unexpected .*head.bias"),
    ],
    ids=["mlp", "nested"],
)
def test_another_network_is_refused_by_names(other, message, tmp_path):
    path = save(quantized(build("residual", torch.float32)), tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load(path, other())


def test_other_shapes_are_refused(tmp_path):
    path = save(quantized(build("residual", torch.float32)), tmp_path / "model")
    model = build("residual", torch.float32)
    model.head = nn.Linear(4, 9)
    with pytest.raises(ValueError, match=r"other shapes .*head.bias.*head.weight"):
        load(path, model)


def test_a_float_network_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Residual is not quantised"):
        save(build("residual"), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors does not exist"):
        load(tmp_path / "absent.safetensors", build("mlp"))


def flipped(data: bytes) -> bytes:
    """One bit of the last tensor is another."""
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "text": lambda data: b"hello" * 100,
    "foreign": lambda data: data.replace(b'"hawq"', b'"duck"', 1),
    "newer": lambda data: data.replace(b"hawq.packed/2", b"hawq.packed/9", 1),
    "no schema": lambda data: data.replace(b"schema", b"schama", 1),
    "no blocks": lambda data: data.replace(b"blocks", b"blacks", 1),
    "other block": lambda data: data.replace(b"num_weights", b"nun_weights", 1),
    "other width": lambda data: data.replace(b"scales", b"scalps", 1),
    "other name": lambda data: data.replace(b"unit.conv1", b"unit.conv2", 1),
    "other facts": lambda data: data.replace(b"about", b"aboot", 1),
    "one bit": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_by_name(damage, tmp_path):
    model = build("residual", torch.float32)
    path = save(quantized(model), tmp_path / "model.safetensors")
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    with pytest.raises(ValueError, match=r"model.safetensors"):
        load(path, model)


def test_the_layout_is_the_documented_one(tmp_path):
    path = save(quantized(build("residual", torch.float32), LSQ()), tmp_path / "model")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hawq"])
        types = {name: file.get_tensor(name).dtype for name in ("codes", "scales", "lows", "floats")}
    assert list(types.values()) == [torch.uint8, torch.float32, torch.float16, torch.float32]
    assert [entry["name"] for entry in header["weights"]] == ["stem", "unit.conv1", "unit.conv2", "head"]
    assert [entry["bits"] for entry in header["inputs"]] == [8, 4, 4, 4]
