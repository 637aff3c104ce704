"""Checkpoint files: what wraps weights, what is wrong with them, and what they say of their inputs."""

import io
import pickle
import random
from pathlib import Path

import pytest
import timm
import torch
from networks import build, samples
from safetensors.torch import save as to_safetensors
from torch import nn

from hawq.models import ModelSpec, load_checkpoint, read_checkpoint, write_checkpoint
from hawq.records import Normalization
from hawq.weights import load_strictly

CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
OWN = Normalization((0.5, 0.25, 0.125), (0.5, 0.5, 0.25))


def stored(path, content):
    torch.save(content, path)
    return path


def test_an_unknown_file_needs_a_normalisation(tmp_path):
    model = build("mlp", torch.float32)
    path = stored(tmp_path / "weights.pth", model.state_dict())
    with pytest.raises(ValueError, match=r"weights.pth does not say.*mean=\[r,g,b\]"):
        read_checkpoint(path, None)
    assert read_checkpoint(path, OWN).normalization == OWN


PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.")
KEYS = ("state_dict", "model_state_dict", "model", "net", "module", "ema", "state_dict_ema", "params", "my_run")


def chains(parts, count=40):
    """Up to three of `parts`, in every kind of order: the same draws each time."""
    rng = random.Random(0)
    return [[], *([part] for part in parts), *(rng.sample(parts, rng.choice([2, 3])) for _ in range(count))]


def prefixed(state, prefixes):
    return {"".join(prefixes) + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_understood_in_any_order(suffix, tmp_path):
    state = build("residual", torch.float32).state_dict()
    path = tmp_path / f"weights{suffix}"
    for prefixes in chains(PREFIXES):
        content = prefixed(state, prefixes)
        path.write_bytes(to_safetensors(content)) if suffix == ".safetensors" else torch.save(content, path)
        read_alone = read_checkpoint(path, OWN).state
        assert read_alone.keys() == state.keys(), prefixes
        other = build("residual", torch.float32)
        nn.init.zeros_(other.head.weight)
        assert load_checkpoint(other, path, OWN) == OWN
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items()), prefixes


def noise(model):
    """What training stores beside the weights."""
    optimizer = torch.optim.Adam(model.parameters())
    model(samples(2, torch.float32)[0]).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {"epoch": 3, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "args": {"lr": 0.1}}


def test_keys_of_wrappers_are_understood_in_any_order(tmp_path):
    extra = noise(build("residual", torch.float32))
    state = build("residual", torch.float32).state_dict()
    for keys in chains(KEYS):
        content = state
        for key in keys:
            content = {key: content, **extra}
        assert read_checkpoint(stored(tmp_path / "weights.pth", content), OWN).state.keys() == state.keys(), keys


AWKWARD = {  # whether something that is left out is told, and the content
    "compiled parts": (False, lambda state: {name.replace("unit.", "unit._orig_mod."): t for name, t in state.items()}),
    "parallel parts": (False, lambda state: {name.replace("unit.", "unit.module."): t for name, t in state.items()}),
    "average of weights": (False, lambda state: {"n_averaged": torch.tensor(3)} | prefixed(state, ["module."])),
    "a loss beside": (True, lambda state: prefixed(state, ["model."]) | {"criterion.weight": torch.ones(3)}),
    "averaged below": (True, lambda state: prefixed(doubled(state), ["ema_model."]) | prefixed(state, ["model."])),
    "the same twice": (False, lambda state: {"model": state, "state_dict": dict(state)}),
    "averaged beside": (True, lambda state: {"state_dict_ema": doubled(state), "state_dict": state}),
    "only averaged": (False, lambda state: {"ema": prefixed(state, ["module."]), "epoch": 3}),
}


def doubled(state):
    return {name: tensor * 2 for name, tensor in state.items()}


@pytest.mark.parametrize(("told", "wrap"), AWKWARD.values(), ids=AWKWARD)
def test_the_network_is_found_among_other_things_and_what_is_left_out_is_told(told, wrap, tmp_path, caplog):
    state = build("residual", torch.float32).state_dict()
    other = build("residual", torch.float32)
    nn.init.zeros_(other.head.weight)
    content = wrap(state)
    load_checkpoint(other, stored(tmp_path / "weights.pth", content), OWN)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert ("weights.pth" in caplog.text) == told


AMBIGUOUS = {
    "keys": lambda state: {"generator": state, "critic": doubled(state)},
    "usual keys": lambda state: {"model": state, "net": doubled(state)},
    "prefixes": lambda state: prefixed(state, ["student."]) | prefixed(doubled(state), ["teacher."]),
}


@pytest.mark.parametrize("wrap", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_several_networks_are_refused_in_one_sentence(wrap, tmp_path):
    model = build("residual", torch.float32)
    path = stored(tmp_path / "weights.pth", wrap(model.state_dict()))
    with pytest.raises(ValueError, match=r"^checkpoint=.*weights.pth holds several .*store the one"):
        load_checkpoint(model, path, OWN)


SPOILT = {
    "NaN": (lambda tensor: tensor.index_fill(0, torch.tensor(1), torch.nan), "holds NaN"),
    "infinite": (lambda tensor: tensor.index_fill(0, torch.tensor(1), -torch.inf), "holds infinite values"),
    "too large": (lambda tensor: (tensor.double().abs() + 1) * 1e300, "too large for float32"),
    "half infinite": (lambda tensor: ((tensor.abs() + 1) * 1e30).half(), "holds infinite values"),
    "whole": (lambda tensor: tensor.to(torch.int8), r"whole numbers \(int8\)"),
    "boolean": (lambda tensor: tensor > 0, r"whole numbers \(bool\)"),
    "complex": (lambda tensor: tensor.to(torch.complex64), r"complex numbers \(complex64\)"),
    "sparse": (lambda tensor: tensor.to_sparse(), "not a dense tensor"),
}


@pytest.mark.parametrize("name", ["stem.weight", "unit.bn1.bias", "unit.bn2.running_var"])
@pytest.mark.parametrize(("spoil", "told"), SPOILT.values(), ids=SPOILT)
def test_values_that_no_network_has_are_refused_by_name(spoil, told, name, tmp_path):
    model = build("residual", torch.float32)
    state = model.state_dict()
    path = stored(tmp_path / "weights.pth", state | {name: spoil(state[name])})
    with pytest.raises(ValueError, match=rf"^checkpoint=.*weights.pth is damaged.*: {name} .*{told}"):
        load_checkpoint(model, path, OWN)


def test_negative_variances_are_refused_by_name(tmp_path):
    model = build("residual", torch.float32)
    state = model.state_dict()
    path = stored(tmp_path / "weights.pth", state | {"unit.bn2.running_var": -state["unit.bn2.running_var"]})
    with pytest.raises(ValueError, match=r"unit.bn2.running_var holds negative variances"):
        load_checkpoint(model, path, OWN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype, tmp_path):
    model, other = build("residual", torch.float32), build("residual", torch.float32)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    nn.init.zeros_(other.head.weight)
    load_checkpoint(other, stored(tmp_path / "weights.pth", state), OWN)
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def test_wrong_names_are_told_before_a_missing_normalisation_and_long_lists_are_cut(tmp_path):
    path = stored(tmp_path / "weights.pth", timm.create_model("resnet56").state_dict())
    with pytest.raises(ValueError, match=r"for another network.*unexpected names \[.* and \d+ more") as told:
        ModelSpec("resnet20", str(path)).build(10)
    assert "normalised" not in str(told.value) and len(str(told.value)) < 1500


def test_buffers_that_the_network_makes_itself_may_be_stored(tmp_path):
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)
            self.register_buffer("index", torch.arange(3), persistent=False)

    state = Indexed().state_dict() | {"index": torch.arange(3)}
    assert load_checkpoint(Indexed(), stored(tmp_path / "weights.pth", state), OWN) == OWN


@pytest.mark.parametrize(
    "about",
    ["no JSON", "{}", '{"mean": 3, "std": 4}', '{"mean": [0, 0, 0], "std": [1, 0, 1]}', '{"mean": [NaN], "std": [1]}'],
)
def test_a_damaged_normalisation_is_refused(about, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors({"w": torch.zeros(1)}, {"hawq.normalization": about}))
    with pytest.raises(ValueError, match=r"^checkpoint=.*weights.safetensors states"):
        read_checkpoint(path, None)


def test_our_own_checkpoint_carries_its_normalisation(tmp_path):
    path = tmp_path / "float.safetensors"
    model = timm.create_model("resnet20", num_classes=4)
    path.write_bytes(write_checkpoint(model, OWN))
    read = ModelSpec("resnet20", str(path)).build(4)
    assert read.normalization == OWN
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.network.state_dict().items())
    with pytest.raises(ValueError, match="trained with mean"):
        read_checkpoint(path, CIFAR)


def test_wrong_names_are_listed(tmp_path):
    state = {"head.weight": torch.zeros(3, 2), "neck.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"missing names .*head.bias.*unexpected names .*neck.weight"):
        load_strictly(nn.ModuleDict({"head": nn.Linear(2, 3)}), state, "weights.pth")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (Path.touch, (self._path,))


def test_a_pickle_with_arbitrary_objects_is_refused_unopened(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "opened"
    for write in (lambda: torch.save({"w": Trap(trace)}, path), lambda: path.write_bytes(pickle.dumps(Trap(trace)))):
        write()
        with pytest.raises(ValueError, match=r"weights.pth is not a file of plain weights"):
            read_checkpoint(path, OWN)
        assert not trace.exists()


def zipped(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.pth", b""),
        ("text.pth", b"hello world"),
        ("truncated.pth", zipped({"w": torch.zeros(9)})[:-50]),
        ("list.pth", zipped([torch.zeros(1)])),
        ("numbers.pth", zipped({"w": 3})),
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello world"),
    ],
)
def test_other_files_are_refused_by_name(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^checkpoint=.*{name}"):
        read_checkpoint(tmp_path / name, OWN)
