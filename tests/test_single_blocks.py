"""Blocks quantised alone, against `hawq.quantize` with a plan that leaves all others float."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, build, samples

from hawq.blocks import find_blocks
from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.quantization import LSQ, DoReFa, Uniform, quantize
from hawq.records import ACTIVATIONS, FLOAT_BITS, WEIGHTS, BitPlan, Precision
from hawq.single_blocks import SingleBlocks

INPUTS = list(samples(9)[0].split((5, 4)))
CALIBRATION = list(samples(8, seed=5)[0].split((4, 4)))


def alone(model, blocks, name, kind, bits, quantizer, carry):
    own = Precision(bits, FLOAT_BITS) if kind == WEIGHTS else Precision(FLOAT_BITS, bits)
    precisions = {block.name: own if block.name == name else Precision(FLOAT_BITS, FLOAT_BITS) for block in blocks}
    plan = BitPlan(precisions, "alone", plan_cost(blocks, precisions))
    return quantize(model, blocks, plan, CALIBRATION, quantizer, carry_batch_norm=carry)


@pytest.mark.parametrize("settings", [{}, {"reuse": False}, {"bytes_kept": 0}], ids=str)
@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_outputs_are_those_of_a_network_quantised_as_a_whole(name, carry, settings):
    model = build(name)
    quantizer = {"depthwise": Uniform("minmax"), "mlp": DoReFa()}.get(name, LSQ())
    blocks = find_blocks(model, INPUTS[0][:1])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    single = SingleBlocks(model, blocks, INPUTS, CALIBRATION, quantizer, carry_batch_norm=carry, **settings)
    for block in [*blocks[1:], blocks[0], *blocks]:  # back and forth
        for kind, bits in ((WEIGHTS, 2), (ACTIVATIONS, 3), (WEIGHTS, 4)):
            if kind == ACTIVATIONS and not block.num_activations:
                continue
            expected = alone(model, blocks, block.name, kind, bits, quantizer, carry)
            with single.quantized(block.name, kind, bits):
                found = list(single.run())
            torch.testing.assert_close(found, [expected(inputs) for inputs in INPUTS])
    single.leave()
    torch.testing.assert_close(list(single.run()), [model(inputs) for inputs in INPUTS], rtol=0, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_part_before_a_block_runs_once_per_block():
    model = build("residual")
    blocks, calls = find_blocks(model, INPUTS[0][:1]), []
    single = SingleBlocks(model, blocks, INPUTS, CALIBRATION)
    single._network.stem.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    stem = single._network.stem.forward
    single._network.stem.forward = lambda x: calls.append("run") or stem(x)
    with single.quantized("head", WEIGHTS, 2):
        list(single.run())
    first = calls.count("run")
    for bits in (3, 4, 5):
        with single.quantized("head", WEIGHTS, bits):
            list(single.run())
    assert calls.count("run") == first == len(INPUTS) + len(CALIBRATION)


def test_activations_need_calibration():
    model = build("residual")
    single = SingleBlocks(model, find_blocks(model, INPUTS[0][:1]), INPUTS, [])
    with pytest.raises(UserError, match="calibration"), single.quantized("unit", ACTIVATIONS, 4):
        pass
