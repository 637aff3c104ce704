"""Costs of a plan, against the papers' figures and against hand calculation."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

import hawq.models  # noqa: F401 (registers resnet20 and squeezenext)
from hawq.blocks import find_blocks
from hawq.costs import MIB, checkpoint_bytes, paper_size_mib, plan_cost, published_bytes
from hawq.models.publishers import find_publication
from hawq.records import Block, Precision

RESNET20 = [432, 4608, 4608, 4608, 13824, 18432, 18432, 55296, 73728, 73728, 640]
PUBLISHED_BITS = (8, 6, 6, 8, 3, 3, 3, 2, 2, 2, 3)  # table 1 of 1905.03696


def cost(sizes, weight_bits, activation_bits=4, **counts):
    blocks = [
        Block(str(i), (str(i),), size, **{key: values[i] for key, values in counts.items()})
        for i, size in enumerate(sizes)
    ]
    activation_bits = [activation_bits] * len(sizes) if isinstance(activation_bits, int) else activation_bits
    precisions = {b.name: Precision(w, a) for b, w, a in zip(blocks, weight_bits, activation_bits, strict=True)}
    return plan_cost(blocks, precisions)


def test_published_resnet20_assignment():
    result = cost(RESNET20, PUBLISHED_BITS)
    assert result.num_weights == 268336
    assert result.weight_bytes == 655104 // 8
    assert result.average_bits * result.num_weights == pytest.approx(655104)
    assert result.w_comp == pytest.approx(13.1075, abs=5e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_uniform_rows(bits):
    result = cost(RESNET20, [bits] * 11, bits, num_activations=range(11))
    assert result.w_comp == pytest.approx(32 / bits)
    assert result.a_comp == pytest.approx(32 / bits)
    assert result.average_bits == bits


def test_a_comp_weighs_by_elements_and_leaves_the_image_out():
    result = cost([1, 1, 1], [8, 8, 8], [8, 4, 2], num_activations=[0, 100, 300])
    assert result.a_comp == pytest.approx(32 / ((100 * 4 + 300 * 2) / 400))


def test_weight_bytes_are_rounded_up():
    assert cost([3], [3]).weight_bytes == 2  # 9 bits


def test_peak_is_that_of_the_block_with_the_most_bytes():
    assert cost([1, 1, 1], [8, 8, 8], [8, 4, 2], num_activations=[10, 100, 300]).peak_activation_bytes == 75


def test_packed_bytes_add_what_is_not_codes():
    block = Block("a", ("a",), 3)
    assert plan_cost([block], {"a": Precision(3, 4)}, 1000).packed_bytes == 1002
    assert plan_cost([block], {"a": Precision(3, 4)}).packed_bytes is None


def test_untraced_blocks_have_no_a_comp_and_no_bops():
    result = cost([4, 4], [2, 2])
    assert (result.a_comp, result.bops) == (None, None)


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        (4, 4 * 4 * 9 * 64 * 5 * 8 + 10 * 2 * 3 * 4),  # the stem multiplies the 8-bit image
        (32, 4 * 4 * 9 * 64 * 5 * 32 + 10 * 2 * 3 * 32),
    ],
)
def test_bops_by_hand(activations, expected):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 5))
    stem, head = find_blocks(model, torch.randn(1, 4, 8, 8))
    result = plan_cost((stem, head), {stem.name: Precision(5, activations), head.name: Precision(3, activations)})
    assert result.bops == expected


def test_checkpoint_bytes_count_buffers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert checkpoint_bytes(model) == (3 * 4 * 9 + 4) * 4 + 4 * 4 * 4 + 8  # the batch counter is one int64


@pytest.mark.parametrize(("float_bytes", "w_comp", "mib"), [(2**20, 8.0, 0.125), (268336 * 4, 13.1075, 0.07809)])
def test_paper_size(float_bytes, w_comp, mib):
    assert paper_size_mib(float_bytes, w_comp) == pytest.approx(mib, rel=1e-4)


def meta(name, side=None):
    """A network of the registry without memory, and its blocks, traced at `side`."""
    with torch.device("meta"):
        model = timm.create_model(name)
        return model, find_blocks(model, torch.empty(1, 3, side, side) if side else None)


def bops(name, side, bits, change=lambda model: None):
    with torch.device("meta"):
        model = timm.create_model(name)
        change(model)
        blocks = find_blocks(model, torch.empty(1, 3, side, side))
    return plan_cost(blocks, dict.fromkeys((block.name for block in blocks), Precision(bits, bits))).bops / 1e9


def stride_in_first_convolution(model):
    """The variant of ResNet50 that V3's table counts; timm, torchvision and `resnet50b` stride in the 3×3."""
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


@pytest.mark.parametrize(
    ("name", "side", "bits", "printed", "change"),
    [
        ("resnet18", 224, 32, 1858, lambda model: None),
        ("resnet18", 224, 8, 116, lambda model: None),
        ("inception_v3", 299, 32, 5850, lambda model: None),
        ("resnet50", 224, 32, 3951, stride_in_first_convolution),
        ("resnet50", 224, 8, 247, stride_in_first_convolution),
        ("resnet50", 224, 32, 4187, lambda model: None),  # not printed: ours, the stride in the 3×3
    ],
)
def test_printed_bops(name, side, bits, printed, change):
    assert bops(name, side, bits, change) == pytest.approx(printed, abs=0.5)  # G


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_weights", "num_layers"),
    [
        ("resnet18", 11689512, 11678912, 21),
        ("resnet50", 25557032, 25502912, 54),
        ("inception_v3", 23834568, 23799136, 95),
        ("squeezenext", 2583752, 2548096, 112),
    ],
)
def test_sizes_of_the_papers_networks(name, num_parameters, num_weights, num_layers):
    model, blocks = meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert sum(block.num_weights for block in blocks) == num_weights
    assert sum(len(block.layers) for block in blocks) == num_layers


def published_state(name, source):
    """A state dict of zeros as `source` names it, with versions of the modules that its names show."""
    model, _ = meta(name)
    modules = find_publication(source, name).modules or {}
    theirs = {ours: name for name, ours in modules.items()}
    layers = ((*name.rpartition("."), tensor) for name, tensor in model.state_dict().items())
    state = OrderedDict(
        (f"{theirs.get(layer, layer)}.{leaf}", torch.zeros_like(tensor, device="cpu"))
        for layer, _, leaf, tensor in layers
    )
    parts = [name.split(".") for name in state]
    state._metadata = {".".join(part[:end]): {"version": 1} for part in parts for end in range(len(part))}
    return state


@pytest.mark.parametrize(
    ("name", "source", "mib", "printed"),
    [
        ("resnet50", "pytorchcv", 97.761, 97.8),
        ("inception_v3", "pytorchcv", 91.189, 91.2),
        ("inception_v3", "torchvision", 91.153, 91.2),
        ("squeezenext", "pytorchcv", 10.094, 10.1),
        ("resnet18", "torchvision", 44.649, 44.6),  # V3; 44.7 in V1
    ],
)
def test_printed_float_sizes(name, source, mib, printed):
    size = published_bytes(published_state(name, source)) / MIB
    assert size == pytest.approx(mib, abs=0.01)
    assert size == pytest.approx(printed, abs=0.05)


def test_published_bytes_are_those_of_the_file(tmp_path):
    state = timm.create_model("resnet20").state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert published_bytes(state) == (tmp_path / "old.pth").stat().st_size


def test_squeezenext_direct_row():
    """3 bits between the first convolution and the classifier at 8: printed 9.04 and 1.12 MB."""
    _, blocks = meta("squeezenext")
    ends = (blocks[0].name, blocks[-1].name)
    cost = plan_cost(blocks, {block.name: Precision(8 if block.name in ends else 3, 8) for block in blocks})
    assert cost.w_comp == pytest.approx(9.04, abs=5e-3)
    size = published_bytes(published_state("squeezenext", "pytorchcv"))
    assert paper_size_mib(size, cost.w_comp) == pytest.approx(1.12, abs=5e-3)


@pytest.mark.parametrize(("mib", "w_comp", "printed"), [(97.8, 12.28, 7.96), (91.2, 12.04, 7.57), (10.1, 9.26, 1.09)])
def test_printed_sizes_of_hawq_follow_from_its_printed_ratios(mib, w_comp, printed):
    assert paper_size_mib(mib * MIB, w_comp) == pytest.approx(printed, abs=6e-3)
