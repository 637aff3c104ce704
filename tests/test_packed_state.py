"""Whatever a network keeps comes back exactly, in its own type, or saving names what it cannot hold."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import samples
from packed_files import parts_of
from sensitivities import plan_of
from torch import nn

import hawq
from hawq.blocks import find_blocks
from hawq.errors import UserError
from hawq.export import load, packed_overhead, save
from hawq.export.schema import EXACT_TYPES
from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, attach
from hawq.records import BlockSensitivity, Estimate, Sensitivity
from hawq.unquantized import unquantized

IMAGES = samples(6, torch.float32)[0]
TYPES = {**EXACT_TYPES, "float32": torch.float32}


class Keeping(nn.Module):
    """A small network that keeps further tensors."""

    def __init__(self, **kept):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        for name, tensor in kept.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def quantized(model, images=IMAGES, quantizer=None, bits=3):
    blocks = find_blocks(model, images[:1])
    return hawq.quantize(model.eval(), blocks, plan_of(blocks, bits, 4), [images], quantizer).eval()


def emptied(model):
    """The same architecture with other values."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.fill_(1)
    return other


def random_tensor(kind, shape, seed):
    """Random bytes as a tensor, of every value the type has."""
    size = torch.zeros(shape, dtype=kind).numel() * kind.itemsize
    data = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    if kind == torch.bool:
        return (data > 127).reshape(shape)
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(kind, kind)
    flat = data.view(real)
    return (torch.view_as_complex(flat.reshape(-1, 2)) if real != kind else flat).reshape(shape)


def raw(tensor):
    flat = tensor.contiguous().reshape(-1)
    return (torch.view_as_real(flat) if flat.is_complex() else flat).contiguous().view(torch.uint8)


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(
        st.tuples(st.sampled_from(sorted(TYPES)), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99)),
        min_size=1,
        max_size=6,
    )
)
def test_every_tensor_comes_back_bit_for_bit(kept, tmp_path_factory):
    tensors = {f"kept{i}": random_tensor(TYPES[kind], shape, seed) for i, (kind, shape, seed) in enumerate(kept)}
    model = Keeping(**tensors)
    network = quantized(model)
    path = save(network, tmp_path_factory.mktemp("kept") / "packed")
    loaded = load(path, emptied(model))
    for name, tensor in tensors.items():
        found = loaded.state_dict()[name]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(raw(found), raw(tensor))
    assert torch.equal(loaded(IMAGES), network(IMAGES))
    assert path.stat().st_size <= packed_overhead(model, find_blocks(model, IMAGES)) + network_bytes(network)
    older = all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert parts_of(path)[0]["schema"] == f"hawq.packed/{2 if older else 3}"


def network_bytes(network):
    return network.quantization.plan.cost.weight_bytes


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), Uniform("minmax"), DoReFa(), PACT(), RVQuant(10)], ids=repr)
@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_networks_of_other_precision(kind, quantizer, tmp_path):
    model, images = Keeping().to(kind), IMAGES.to(kind)
    network = quantized(model, images, quantizer)
    loaded = load(save(network, tmp_path / "packed"), emptied(model))
    assert network(images).isfinite().all()
    assert torch.equal(loaded(images), network(images))
    assert torch.equal(load(save(loaded, tmp_path / "again"), model)(images), network(images))
    size = (tmp_path / "packed").stat().st_size
    assert size <= packed_overhead(model, find_blocks(model, images), quantizer) + network_bytes(network)


class Shared(nn.Module):
    """One layer under three names, one float parameter under two, one norm under two."""

    def __init__(self):
        super().__init__()
        self.stem, self.layers = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)] * 3)
        self.head, self.norms = nn.Linear(4, 3), nn.ModuleList([nn.BatchNorm2d(4)] * 2)
        self.first = nn.Parameter(torch.randn(4, 1, 1))
        self.second = self.first

    def forward(self, x):
        x = self.norms[0](self.stem(x)) * self.first + self.second
        for layer in self.layers:
            x = self.norms[1](layer(x).relu())
        return self.head(x.mean((2, 3)))


class Embedded(nn.Module):
    """The head's weight is an embedding's, which stays float."""

    def __init__(self):
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(3, 4, 3), nn.Embedding(3, 4), nn.Linear(4, 3)
        self.head.weight = self.table.weight

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.head(x + self.table(torch.arange(len(x)) % 3))


class Twice(nn.Module):
    """Two layers with one weight and own biases, one block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unit = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.unit[2].weight = self.unit[0].weight

    def forward(self, x):
        return self.unit(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("bits", [3, 32])
@pytest.mark.parametrize("kind", [Shared, Embedded, Twice])
def test_what_stands_under_several_names(kind, bits, tmp_path):
    torch.manual_seed(0)
    model = kind()
    blocks = find_blocks(model, IMAGES, granularity=["unit"] if kind is Twice else "block")
    floats = {part.name for part in unquantized(model, blocks, IMAGES) if part.num_weights > 4}
    assert floats == ({"table.weight"} if kind is Embedded else set())
    network = hawq.quantize(model.eval(), blocks, plan_of(blocks, bits, 4), [IMAGES]).eval()
    path = save(network, tmp_path / "packed")
    torch.manual_seed(1)
    loaded = load(path, kind())
    assert torch.equal(loaded(IMAGES), network(IMAGES))
    again = load(save(loaded, tmp_path / "again"), kind())
    assert torch.equal(again(IMAGES), network(IMAGES))
    stored = [entry["name"] for entry in parts_of(path)[0]["floats"]]
    state = network.state_dict()
    places = [state[name].data_ptr() for name in stored]
    assert len(set(places)) == len(places)  # each once
    assert path.stat().st_size <= packed_overhead(model, blocks) + network_bytes(network)


def test_a_network_that_does_not_share_refuses_what_is_stored_once(tmp_path):
    torch.manual_seed(0)
    path = save(quantized(Shared()), tmp_path / "packed")
    other = Shared()
    other.layers = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
    with pytest.raises(ValueError, match=r"missing names .*layers\.1\.bias"):
        load(path, other)


def test_batch_counters_are_left_out(tmp_path):
    model = Keeping()
    model.norm.num_batches_tracked.fill_(7)
    path = save(quantized(model), tmp_path / "packed")
    assert b"num_batches_tracked" not in path.read_bytes()
    assert load(path, model).norm.num_batches_tracked == 7


class WithState(Keeping):
    def get_extra_state(self):
        return {"temperature": 3}

    def set_extra_state(self, state):
        pass


def with_quantized_buffer():
    return Keeping(table=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))


UNFIT = {
    "sparse": (lambda: Keeping(table=torch.eye(3).to_sparse()), "table is no dense tensor"),
    "quantised": (with_quantized_buffer, "table is no dense tensor"),
    "eight-bit float": (
        lambda: Keeping(table=torch.ones(3).to(torch.float8_e4m3fn)),
        "table has the type float8_e4m3fn",
    ),
    "extra state": (WithState, "_extra_state is no dense tensor"),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_stored_is_named(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save(quantized(make()), tmp_path / "packed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("about", [{"mean": float("nan")}, {"net": nn.Linear(1, 1)}, {"x": {1, 2}}], ids=str)
def test_facts_that_are_no_json_are_refused(about, tmp_path):
    with pytest.raises(UserError, match="cannot be written as JSON"):
        save(quantized(Keeping()), tmp_path / "packed", about)
    assert not list(tmp_path.iterdir())


def test_quantisers_that_are_off_are_not_packed(tmp_path):
    model = Keeping()
    blocks = find_blocks(model, IMAGES)
    with pytest.raises(UserError, match="quantiser of conv is still off"):
        save(attach(model, blocks, plan_of(blocks, 3), LSQ()), tmp_path / "packed")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Keeping(kept=torch.ones(3)), "kept of whole numbers for real ones"),
        (lambda: Keeping(kept=torch.ones(3, dtype=torch.cfloat)), "kept of whole numbers for complex ones"),
        (lambda: Keeping(kept=torch.ones(3, dtype=torch.bool)), "kept of whole numbers for boolean ones"),
        (lambda: Keeping(kept=torch.ones(4, dtype=torch.long)), r"kept \(3,\) for \(4,\)"),
        (lambda: Keeping(), r"unexpected names \[kept\]"),
        (lambda: Keeping(kept=torch.ones(3).long(), mask=torch.ones(3).bool()), r"missing names \[mask\]"),
    ],
)
def test_tensors_of_another_kind_are_refused(other, message, tmp_path):
    path = save(quantized(Keeping(kept=torch.tensor([1, 2, 3]))), tmp_path / "packed")
    with pytest.raises(ValueError, match=message):
        load(path, other())


def test_a_file_of_the_older_schema_says_what_it_lacks(tmp_path, caplog):
    path = save(quantized(Keeping()), tmp_path / "packed")
    assert load(path, Keeping(mask=torch.tensor([True]))).mask
    assert "does not hold mask: these keep the values of the given model" in caplog.text


QUANTISED = {
    "quantised": lambda network, path: network,
    "loaded": lambda network, path: load(save(network, path), Keeping()),
    "wrapped": lambda network, path: nn.Sequential(network),
    "inputs alone": lambda network, path: quantized(Keeping(), bits=32),
}
VERBS = {
    "quantize": lambda m, blocks, plan: hawq.quantize(m, blocks, plan, [IMAGES]),
    "attach": lambda m, blocks, plan: attach(m, blocks, plan, LSQ()),
    "analyze": lambda m, blocks, plan: hawq.analyze(m, blocks, [(IMAGES, torch.zeros(6).long())]),
    "overhead": lambda m, blocks, plan: packed_overhead(m, blocks),
    "finetune": lambda m, blocks, plan: hawq.finetune(
        m, tuning(blocks), plan, [(IMAGES, torch.zeros(6).long())], IMAGES
    ),
    "load": lambda m, blocks, plan: load("unread", m),
}


def tuning(blocks):
    errors = dict.fromkeys(range(1, 9), 1.0)
    return Sensitivity(tuple(BlockSensitivity(b, Estimate(1.0, 0.0, 1, True), errors) for b in blocks), "none", 1, 0.0)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("make", QUANTISED.values(), ids=QUANTISED)
def test_nothing_is_quantised_twice(make, verb, tmp_path):
    """A second quantiser would act on what the first one gives, and the plan would tell an untruth."""
    network = make(quantized(Keeping(), bits=8), tmp_path / "packed")
    blocks = find_blocks(network, IMAGES)
    with pytest.raises(UserError, match=r"quantised already \(.*conv has \d+ bits\): give the float network"):
        VERBS[verb](network, blocks, plan_of(blocks, 2, 2))


def test_the_header_holds_what_the_formats_page_says(tmp_path):
    header, tensors = parts_of(save(quantized(Keeping(mask=torch.tensor([True, False]))), tmp_path / "packed"))
    assert header["tensors"] == [{"name": "mask", "shape": [2], "dtype": "bool"}]
    assert tensors["exact"].tolist() == [1, 0]
