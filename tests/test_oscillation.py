"""Oscillating weights, against the definitions of 2203.11086 weight by weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sensitivities import plan_of
from torch import nn

from hawq.blocks import find_blocks
from hawq.finetuning.oscillation import MOMENTUM, WATCHED_BITS, Oscillations
from hawq.quantization import LSQ, DoReFa, Uniform, attach, weight_quantizer

NUM_WEIGHTS = 6


def network(quantizer=None, bits=2):
    """(network of one linear layer, its quantised layer, its blocks)."""
    model = nn.Sequential(nn.Linear(NUM_WEIGHTS, 1, bias=False))
    blocks = find_blocks(model)
    quantized = attach(model, blocks, plan_of(blocks, bits), quantizer or LSQ(per_channel=False, balanced_bits=0))
    layer = quantized[0]
    weight_quantizer(layer).initialise(layer.parametrizations.weight.original)
    return quantized, layer, blocks


def expected(codes, threshold):
    """(frequency, frozen code or None) of one weight that would take these codes, one a step."""
    frequency, direction, mean, last, frozen = 0.0, 0, codes[0], codes[0], None
    for code in codes:
        code = code if frozen is None else frozen
        turned = (code - last) * direction < 0
        frequency = MOMENTUM * turned + (1 - MOMENTUM) * frequency
        mean = MOMENTUM * code + (1 - MOMENTUM) * mean
        direction, last = (code > last) - (code < last) or direction, code
        if frozen is None and frequency > threshold:
            frozen = round(mean)
    return frequency, frozen


@settings(max_examples=40, deadline=None)
@given(
    walks=st.lists(st.lists(st.integers(-2, 1), min_size=NUM_WEIGHTS, max_size=NUM_WEIGHTS), min_size=1, max_size=30),
    threshold=st.sampled_from([0.005, 0.015, 0.04]),
)
def test_frequencies_and_frozen_codes_weight_by_weight(walks, threshold):
    model, layer, blocks = network()
    watch, weight = Oscillations(blocks, threshold), layer.parametrizations.weight.original
    scale = weight_quantizer(layer).scale.detach()
    for codes in walks:
        with torch.no_grad():
            weight.copy_(torch.tensor([codes]) * scale)
        watch.after_step(model)
    references = [expected(column, threshold) for column in zip(*walks, strict=True)]
    (state,) = watch.state_dict().values()
    assert state["frequency"][0].tolist() == pytest.approx([frequency for frequency, _ in references], abs=1e-6)
    held = [last if frozen is None else frozen for last, (_, frozen) in zip(walks[-1], references, strict=True)]
    assert layer.weight.detach()[0].tolist() == pytest.approx([code * float(scale) for code in held])
    row = watch.row()
    assert row["frozen"] * NUM_WEIGHTS == sum(frozen is not None for _, frozen in references)
    assert row["oscillating"] * NUM_WEIGHTS == sum(frequency > 0.005 for frequency, _ in references)
    assert row[f"oscillating/{blocks[0].name}"] == row["oscillating"]


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), Uniform(symmetric=False), DoReFa()], ids=repr)
def test_a_frozen_weight_keeps_its_value_on_the_grid(quantizer):
    model, layer, blocks = network(quantizer, bits=3)
    watch, weight = Oscillations(blocks, 0.005), layer.parametrizations.weight.original
    start, step = torch.tensor([[-1.0, 1.0, 0.1, 0.2, -0.3, 0.4]]), 0.4
    weight_quantizer(layer).initialise(start)
    for sign in (1, 0, 1, 0, 1, 0):  # all but the two that the range is made of go up and back
        with torch.no_grad():
            weight.copy_(start + sign * step * (start.abs() < 1))
        watch.after_step(model)
    frozen = watch.state_dict()["0"]["frozen"]
    assert torch.equal(frozen, start.abs() < 1)
    before = layer.weight.detach()[frozen]
    with torch.no_grad():
        weight.sub_(frozen * step)
    assert not torch.allclose(layer.weight.detach()[frozen], before)
    watch.after_step(model)
    assert torch.allclose(layer.weight.detach()[frozen], before)


def test_watching_changes_no_weight():
    model, layer, blocks = network()
    watch, before = Oscillations(blocks), layer.parametrizations.weight.original.detach().clone()
    watch.after_step(model)
    assert torch.equal(layer.parametrizations.weight.original, before)
    assert watch.row() == {"oscillating": 0.0, f"oscillating/{blocks[0].name}": 0.0}


def test_wide_grids_and_quantisers_that_are_off_are_not_watched():
    for bits, enabled in ((WATCHED_BITS + 1, True), (WATCHED_BITS, False)):
        model, layer, blocks = network(bits=bits)
        weight_quantizer(layer).enabled = enabled
        watch = Oscillations(blocks)
        watch.after_step(model)
        assert watch.row() == {}
