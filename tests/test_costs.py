"""Costs of a plan, against the papers' figures and against hand calculation."""

import pytest
import torch
from torch import nn

from hawq.blocks import find_blocks
from hawq.costs import checkpoint_bytes, paper_size_mib, plan_cost
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
