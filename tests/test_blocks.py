"""Blocks: which layers belong together, and what they cost."""

import pytest
import timm
import torch
from networks import SIDE, Branches, Depthwise, Residual, Tied, mlp
from torch import nn

import hawq.models  # noqa: F401 (registers resnet20)
from hawq.blocks import find_blocks, trace_blocks

RESNET20 = [432, 4608, 4608, 4608, 13824, 18432, 18432, 55296, 73728, 73728, 640]  # table 1 of 1905.03696


def test_resnet20_has_the_published_blocks():
    blocks = find_blocks(timm.create_model("resnet20"))
    assert [block.num_weights for block in blocks] == RESNET20
    assert sum(RESNET20) == 268336
    assert [block.name for block in blocks] == ["conv1", *[f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)], "fc"]


NUM_BLOCKS = {
    "resnet20": 11,
    "resnet56_projection": 29,
    "resnet18": 10,
    "resnet50": 18,
    "inception_v3": 17,
    "squeezenext": 24,
    "mobilenetv2_100": 20,
    "vit_tiny_patch16_224": 14,
    "regnety_002": 15,  # by timm's own grouping; its module tree has only stages
    "vgg11": 10,
    "convnext_atto": 17,
}


@pytest.mark.parametrize(("name", "num_blocks"), NUM_BLOCKS.items())
def test_networks_of_the_registry(name, num_blocks):
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = [layer for block in find_blocks(model) for layer in block.layers]
    expected = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(find_blocks(model)) == num_blocks
    assert sorted(layers) == sorted(expected)


RESNET50 = {
    "conv1": 9408,
    "layer1.0": 73728,
    **{f"layer1.{i}": 69632 for i in (1, 2)},
    "layer2.0": 376832,
    **{f"layer2.{i}": 278528 for i in (1, 2, 3)},
    "layer3.0": 1507328,
    **{f"layer3.{i}": 1114112 for i in range(1, 6)},
    "layer4.0": 6029312,
    **{f"layer4.{i}": 4456448 for i in (1, 2)},
    "fc": 2048000,
}
INCEPTION_V3 = {
    "Conv2d_1a_3x3": 864,
    "Conv2d_2a_3x3": 9216,
    "Conv2d_2b_3x3": 18432,
    "Conv2d_3b_1x1": 5120,
    "Conv2d_4a_3x3": 138240,
    "Mixed_5b": 254976,
    "Mixed_5c": 276480,
    "Mixed_5d": 284160,
    "Mixed_6a": 1152000,
    "Mixed_6b": 1294336,
    "Mixed_6c": 1687552,
    "Mixed_6d": 1687552,
    "Mixed_6e": 2138112,
    "Mixed_7a": 1695744,
    "Mixed_7b": 5038080,
    "Mixed_7c": 6070272,
    "fc": 2048000,
}
SQUEEZENEXT = {
    "stem": 18816,
    "stage1.0": 19456,
    **{f"stage1.{i}": 9216 for i in range(1, 6)},
    "stage2.0": 40960,
    **{f"stage2.{i}": 36864 for i in range(1, 6)},
    "stage3.0": 163840,
    **{f"stage3.{i}": 147456 for i in range(1, 8)},
    "stage4.0": 655360,
    "final": 131072,
    "fc": 256000,
}


@pytest.mark.parametrize(
    ("name", "sizes"), [("resnet50", RESNET50), ("inception_v3", INCEPTION_V3), ("squeezenext", SQUEEZENEXT)]
)
def test_block_sizes_of_the_papers_networks(name, sizes):
    with torch.device("meta"):
        blocks = find_blocks(timm.create_model(name))
    assert {block.name: block.num_weights for block in blocks} == sizes
    assert [block.name for block in blocks] == list(sizes)


class Grouped(Residual):
    """Names its own groups as networks of timm do."""

    def __init__(self, groups):
        super().__init__()
        self._groups = groups

    def group_matcher(self, coarse):
        assert coarse is False
        return self._groups


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({"stem": "^stem", "blocks": r"^unit\.conv(\d)"}, ["stem", "unit.conv1", "unit.conv2", "head"]),
        ({"stem": "^(stem|unit)", "blocks": [("^nothing", None), ("^norm", (99999,))]}, ["stem", "unit", "head"]),
        (
            {"stem": "^stem", "blocks": [(r"^unit\.conv1", (0,)), ("^unit", None)]},
            ["stem", "unit.conv1", "unit", "head"],
        ),
        ({"stem": None, "blocks": None}, ["stem", "unit", "head"]),
        (lambda name: 0, ["stem", "unit", "head"]),
    ],
)
def test_a_network_names_its_own_units(groups, names):
    assert [block.name for block in find_blocks(Grouped(groups))] == names


def test_layers_are_single_whatever_a_network_groups():
    blocks = find_blocks(Grouped({"blocks": "^unit"}), granularity="layer")
    assert [block.name for block in blocks] == ["stem", "unit.conv1", "unit.conv2", "head"]


ALEXNET = nn.Sequential()
ALEXNET.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
ALEXNET.classifier = nn.Sequential(nn.Dropout(), nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("model", "granularity", "names"),
    [
        (ALEXNET, "block", ["features.0", "features.2", "classifier.1"]),
        (mlp(), "block", ["1", "3", "5"]),
        (Residual(), "block", ["stem", "unit", "head"]),
        (Residual(), "layer", ["stem", "unit.conv1", "unit.conv2", "head"]),
        (Residual(), "network", ["network"]),
        (Residual(), [r"unit\.conv\d", "(stem|head)"], ["stem", "unit.conv1", "unit.conv2", "head"]),
        (Residual(), [r"unit\."], ["stem", "unit", "head"]),
        (ALEXNET, [r"features\."], ["features", "classifier.1"]),
        (Branches(), "block", ["unit", "head"]),
        (nn.Sequential(nn.Sequential(Residual(), Residual())), "block", ["0.0", "0.1"]),
        (nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Conv1d(2, 2, 1)}), "block", ["a", "b"]),
    ],
)
def test_names(model, granularity, names):
    assert [block.name for block in find_blocks(model, granularity=granularity)] == names


@pytest.mark.parametrize(
    ("model", "granularity", "message"),
    [
        (nn.Sequential(nn.ReLU()), "block", "nothing to quantise"),
        (Residual(), "channel", "'channel' is not one of block, layer, network"),
        (Residual(), [r"unit\.", "layer9"], "'layer9' matches no layer; the layers are stem, unit.conv1"),
        (Residual(), ["(unit"], r"\(unit.*not a regular expression"),
        (nn.Linear(3, 2), "block", "Sequential"),  # a lone layer has no name
        (nn.Linear(3, 2), "layer", "Sequential"),
        (Tied(), "layer", "'unit.first' and 'unit.second' share one weight"),
    ],
)
def test_refusals(model, granularity, message):
    with pytest.raises(ValueError, match=message):
        find_blocks(model, granularity=granularity)


def test_shared_weight_counts_once():
    assert {block.name: block.num_weights for block in find_blocks(Tied())}["unit"] == 25


AREA = SIDE * SIDE
TRACES = {  # name → (MACs, activations, layers that read the image), by hand for one 3×6×6 image
    "residual": (
        Residual,
        {
            "stem": (3 * 4 * 9 * AREA, 0, ("stem",)),
            "unit": (2 * 4 * 4 * 9 * AREA, 2 * 4 * AREA, ()),
            "head": (12, 4, ()),
        },
    ),
    "branches": (
        Branches,
        {"unit": (3 * 2 * AREA + 3 * 3 * 9 * AREA, 0, ("unit.narrow", "unit.wide")), "head": (15, 5, ())},
    ),
    "depthwise": (
        Depthwise,
        {
            "body.0": (6 * 9 * 9, 0, ("body.0",)),
            "body.2": (6 * 4 * 9, 6 * 9, ()),
            "head": (12, 4, ()),
        },
    ),
    "tied": (Tied, {"stem": (3 * AREA * 5, 0, ("stem",)), "unit": (50, 10, ()), "head": (15, 5, ())}),
}


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("num_images", [1, 3])
def test_trace_against_hand_calculation(name, num_images):
    model, expected = TRACES[name][0](), TRACES[name][1]
    blocks = find_blocks(model, torch.randn(num_images, 3, SIDE, SIDE))
    assert {block.name: (block.macs, block.num_activations, block.image_layers) for block in blocks} == expected


def test_tracing_needs_no_memory():
    expected = find_blocks(Residual(), torch.randn(2, 3, SIDE, SIDE))
    with torch.device("meta"):
        assert find_blocks(Residual(), torch.randn(2, 3, SIDE, SIDE)) == expected


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Linear(4, 4)
    (block,) = trace_blocks(nn.Sequential(layer, nn.Tanh(), layer), find_blocks(nn.Sequential(layer)), torch.ones(2, 4))
    assert (block.macs, block.num_activations) == (32, 4)


def test_tracing_puts_modes_and_buffers_back():
    model = Residual().train()
    model.unit.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_blocks(model, torch.randn(2, 3, SIDE, SIDE))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_are_put_back_after_a_failed_forward():
    model = Residual().train()
    with pytest.raises(RuntimeError):
        find_blocks(model, torch.randn(2, 5, SIDE, SIDE))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
