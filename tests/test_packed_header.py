"""A packed file whose checksum fits and whose content does not: refused in one sentence that names the file."""

import math
from pathlib import Path

import pytest
import timm
import torch
from fuzzing import tried
from packed_files import IMAGES, Everything, changed, packed, parts_of, rewritten
from runs import REPOSITORY
from safetensors.torch import save as to_safetensors

import hawq.models  # noqa: F401 (registers resnet20 with timm)
from hawq.export import load, read_about


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("packed") / "model.safetensors")


def test_rewriting_alone_changes_nothing(original, tmp_path):
    path = tmp_path / "same"
    path.write_bytes(rewritten(parts_of(original)))
    assert torch.equal(load(path, Everything())(IMAGES), load(original, Everything())(IMAGES))


def at(*keys):
    """Sets the value that the keys lead to."""

    def put(value):
        def change(header, tensors):
            node = header
            for key in keys[:-1]:
                node = node[key]
            node[keys[-1]] = value

        return change

    return put


def swapped(header, tensors):
    header["weights"][0], header["weights"][1] = header["weights"][1], header["weights"][0]


def renamed(header, tensors):
    for block in header["blocks"]:
        block["layers"] = [name.replace("stem", "root") for name in block["layers"]]
        block["image_layers"] = []
    header["weights"][0]["name"] = header["inputs"][0]["name"] = "root"


def tensor(name, change):
    def put(header, tensors):
        tensors[name] = change(tensors[name])

    return put


def filled(name, value, place=0):
    def put(header, tensors):
        tensors[name][place] = value

    return put


def without(key):
    return lambda header, tensors: header.pop(key)


MALFORMED = {
    "no blocks": at("blocks")([]),
    "blocks as text": at("blocks")("abc"),
    "blocks as mapping": at("blocks")({}),
    "a null block": at("blocks", 0)(None),
    "another key": at("more")(1),
    "a block's other key": at("blocks", 0, "more")(1),
    "a missing list": without("inputs"),
    "no plan": without("plan"),
    "bits as text": at("weights", 0, "bits")("8"),
    "bits as fraction": at("weights", 0, "bits")(8.0),
    "bits as truth": at("weights", 0, "bits")(True),
    "no bits": at("weights", 0, "bits")(0),
    "nine bits": at("weights", 0, "bits")(9),
    "negative bits": at("weights", 0, "bits")(-8),
    "other bits than the plan": at("weights", 0, "bits")(7),
    "other input bits than the plan": at("inputs", 1, "bits")(3),
    "a plan of nine bits": at("plan", "precisions", "stem", "weight_bits")(9),
    "a plan of other bits": at("plan", "precisions", "stem", "weight_bits")(4),
    "a plan of an unknown block": at("plan", "precisions", "new")({"weight_bits": 8, "activation_bits": 8}),
    "a plan without figures": at("plan", "cost")({}),
    "a false W-Comp": at("plan", "cost", "w_comp")(99.0),
    "a false number of weights": at("plan", "cost", "num_weights")(1),
    "an infinite figure": at("plan", "cost", "average_bits")(math.inf),
    "a figure that is none": at("plan", "cost", "w_comp")(math.nan),
    "precisions as list": at("plan", "precisions")([8, 8]),
    "a shape as text": at("weights", 0, "shape")("4333"),
    "a negative shape": at("weights", 0, "shape")([-4, 3, 3, 3]),
    "a shape of fractions": at("weights", 0, "shape")([4.0, 3.0, 3.0, 3.0]),
    "a huge shape": at("weights", 0, "shape")([2**62, 2**62]),
    "a shape without end": at("weights", 0, "shape")([1] * 100_000),
    "an empty shape": at("weights", 0, "shape")([]),
    "a shape of nothing": at("weights", 0, "shape")([4, 0, 3, 3]),
    "a turned shape": at("weights", 0, "shape")([3, 4, 3, 3]),
    "a flat shape": at("weights", 0, "shape")([108]),
    "a huge tensor": at("floats", 0, "shape")([2**39, 2**39]),
    "a longer tensor": at("floats", 0, "shape")([5]),
    "a negative tensor": at("floats", 0, "shape")([-4]),
    "negative scales": at("weights", 0, "scales")(-1),
    "too many scales": at("weights", 0, "scales")(2),
    "no lows": at("weights", 0, "lows")(0),
    "another axis": at("weights", 1, "axis")(2),
    "a negative axis": at("weights", 0, "axis")(-1),
    "negative large values": at("weights", 0, "large")(-1),
    "too many large values": at("weights", 0, "large")(10**9),
    "no large values": at("weights", 0, "large")(None),
    "a large value twice": lambda header, tensors: tensors["large_places"].__setitem__(1, tensors["large_places"][0]),
    "a large value outside": filled("large_places", 10**6),
    "a large value before": filled("large_places", -1),
    "an infinite large value": filled("large_values", math.inf),
    "a weight twice": lambda header, tensors: header["weights"].append(header["weights"][0]),
    "a weight less": lambda header, tensors: header["weights"].pop(),
    "weights in another order": swapped,
    "an input twice": lambda header, tensors: header["inputs"].append(header["inputs"][0]),
    "an input of no layer": at("inputs", 0, "name")("nowhere"),
    "a tensor twice": lambda header, tensors: header["floats"].append(header["floats"][0]),
    "a layer in two blocks": lambda header, tensors: header["blocks"][1]["layers"].append("stem"),
    "a block twice": lambda header, tensors: header["blocks"].append(header["blocks"][0]),
    "a block without layers": at("blocks", 0, "layers")([]),
    "layers as text": at("blocks", 0, "layers")("stem"),
    "negative weights": at("blocks", 0, "num_weights")(-108),
    "negative operations": at("blocks", 0, "macs")(-1),
    "another image layer": at("blocks", 1, "image_layers")(["stem"]),
    "layers of another network": renamed,
    "a name as number": at("weights", 0, "name")(3),
    "facts as list": at("about")([1]),
    "an unknown type": at("tensors", 0, "dtype")("int63"),
    "another type": at("tensors", 0, "dtype")("float64"),
    "a type of another kind": at("tensors", 1, "dtype")("int8"),
    "a float of another type": at("floats", 0, "dtype")("float64"),
    "neither true nor false": filled("exact", 7, -1),
    "no scale": filled("scales", 0.0),
    "a scale too small to divide by": filled("scales", 1e-40),
    "a scale too large to multiply with": filled("scales", 3e38),
    "a long name": at("floats", 0, "name")("a" * 10_000),
    "a name of two lines": at("blocks", 0, "name")("a\nb"),
    "a negative scale": filled("scales", -1.0),
    "an infinite scale": filled("scales", math.inf),
    "a scale that is none": filled("scales", math.nan, -1),
    "a low above": filled("lows", 1.0),
    "a low below": filled("lows", -300.0),
    "a low between": filled("lows", -0.25),
    "a low that is none": filled("lows", math.nan),
    "fewer codes": tensor("codes", lambda x: x[:-1]),
    "more codes": tensor("codes", lambda x: torch.cat([x, x])),
    "codes of another type": tensor("codes", lambda x: x.int()),
    "codes of two axes": tensor("codes", lambda x: x[None]),
    "no codes": lambda header, tensors: tensors.pop("codes"),
    "another tensor": lambda header, tensors: tensors.update(more=torch.ones(3)),
    "an unused tensor": lambda header, tensors: tensors.update(wide=torch.ones(3, dtype=torch.float64)),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused_in_one_sentence(change, original, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(changed(parts_of(original), change))
    with pytest.raises(ValueError, match=r"model\.safetensors") as told:
        load(path, Everything())
    assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 1000


def test_deep_and_long_headers_are_refused(original, tmp_path):
    tensors = parts_of(original)[1]
    for text in ("[" * 100_000, '{"a":' * 100_000, "", "null", '"text"', "[]", "{}", '{"schema": [1]}'):
        path = tmp_path / "model.safetensors"
        path.write_bytes(to_safetensors(tensors, {"hawq": text}))
        for read in (read_about, lambda path: load(path, Everything())):
            with pytest.raises(ValueError, match=r"model\.safetensors"):
                read(path)
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="is longer than"):
        load(path, Everything())


def test_a_facts_text_is_no_reference(original, tmp_path):
    path = tmp_path / "facts"
    path.write_bytes(changed(parts_of(original), at("about")({"model": "${oc.env:HOME}"})))
    assert read_about(path) == {"model": "${oc.env:HOME}"}


def test_some_random_mutations(original, tmp_path):
    """The short form of tests/torture/test_fuzz_packed.py."""
    figures = tried(original, tmp_path / "model.safetensors", 100, seed=1)
    assert figures["wrong"] == 0 and figures["right"] == 100, figures


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs" / "results").glob("*.safetensors")), ids=lambda p: p.stem)
def test_published_files_are_read_bit_for_bit(path: Path):
    """Decoded once more from the raw bytes, by the words of docs/formats.md alone."""
    header, tensors = parts_of(path)
    assert header["schema"] == ("hawq.packed/3" if "residuals" in path.stem else "hawq.packed/2")
    network = load(path, timm.create_model(header["about"]["model"], num_classes=10))
    codes, scales, lows, floats = (iter(tensors[name].tolist()) for name in ("codes", "scales", "lows", "floats"))
    for entry in header["weights"]:
        count = math.prod(entry["shape"])
        stream = [next(codes) for _ in range(-(-count * entry["bits"] // 8))]
        number = int.from_bytes(bytes(stream), "little")
        mask = 2 ** entry["bits"] - 1
        flat = torch.tensor([(number >> (entry["bits"] * i)) & mask for i in range(count)] if count < 2000 else [])
        scale = torch.tensor([next(scales) for _ in range(entry["scales"])])
        low = torch.tensor([next(lows) for _ in range(entry["lows"])])
        if count < 2000:
            channels = (-1, *[1] * (len(entry["shape"]) - 1))
            expected = (flat.reshape(entry["shape"]) + low.reshape(channels)) * scale.reshape(channels)
            assert torch.equal(network.get_submodule(entry["name"]).weight, expected)
    for entry in header["floats"]:
        expected = torch.tensor([next(floats) for _ in range(math.prod(entry["shape"]))]).reshape(entry["shape"])
        assert torch.equal(network.state_dict()[entry["name"]], expected)
