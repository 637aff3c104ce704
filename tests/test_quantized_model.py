"""Putting quantisers into networks."""

import pytest
import torch
from networks import NETWORKS, Residual, build, samples
from sensitivities import plan_of
from torch import nn

from hawq.blocks import find_blocks
from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, attach, enable, quantize, weight_quantizer
from hawq.records import BitPlan

IMAGES = samples(8, torch.float32)[0]
QUANTIZERS = [
    LSQ(),
    LSQ(per_channel=False),
    Uniform(),
    Uniform("percentile", "percentile"),
    Uniform(symmetric=False, per_channel=False),
]


def quantized(name, quantizer=None, bits=3, activations=4):
    model = build(name, torch.float32)
    blocks = find_blocks(model, IMAGES[:1])
    return model, blocks, quantize(model, blocks, plan_of(blocks, bits, activations), [IMAGES], quantizer)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_planned_weight_has_few_levels(name):
    _, blocks, network = quantized(name)
    layers = dict(network.named_modules())
    for layer in [layers[layer] for block in blocks for layer in block.layers]:
        assert weight_quantizer(layer).bits == 3
        assert all(len(row.unique()) <= 8 for row in layer.weight.reshape(len(layer.weight), -1))
        assert layer.input_quantizer.enabled


def test_the_float_model_stays_as_it_is():
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blocks = find_blocks(model)
    network = quantize(model, blocks, plan_of(blocks, 2), [IMAGES])
    with torch.no_grad():
        network.head.bias.add_(1)
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "quantization")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_read_the_image_keep_8_bits():
    _, _, network = quantized("branches", activations=2)
    bits = {
        name: layer.input_quantizer.bits for name, layer in network.named_modules() if hasattr(layer, "input_quantizer")
    }
    assert bits == {"unit.narrow": 8, "unit.wide": 8, "head": 2}


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), DoReFa(), PACT(), RVQuant()], ids=repr)
def test_32_bits_stay_float(quantizer):
    model, _, network = quantized("residual", quantizer, bits=32, activations=32)
    assert torch.equal(network(IMAGES), model(IMAGES))


def test_wide_grids_are_close_to_float():
    model, _, network = quantized("residual", bits=8, activations=8)
    difference = (network(IMAGES) - model(IMAGES)).abs().max() / model(IMAGES).abs().max()
    assert 0 < difference < 0.1


def test_blocks_enter_one_by_one():
    model = build("residual", torch.float32)
    blocks = find_blocks(model, IMAGES[:1])
    network = attach(model, blocks, plan_of(blocks, 2), LSQ()).eval()
    assert torch.equal(network(IMAGES), model(IMAGES))
    enable(network, ["unit"], [IMAGES])
    on = {
        n for n, layer in network.named_modules() if hasattr(layer, "input_quantizer") and layer.input_quantizer.enabled
    }
    assert on == {"unit.conv1", "unit.conv2"}
    assert torch.equal(network.head.weight, model.head.weight)


def test_a_block_starts_from_its_weights_and_inputs_when_it_enters():
    """Its scale fits the weights of that moment, its input range what blocks before it let through, quantised."""
    model = build("residual", torch.float32)
    blocks = find_blocks(model, IMAGES[:1])
    quantizer = Uniform(weight_range="minmax", activation_range="minmax")
    network = attach(model, blocks, plan_of(blocks, 2), quantizer).eval()
    enable(network, ["stem"], [IMAGES])
    with torch.no_grad():
        network.head.parametrizations.weight.original.mul_(3)
        network.stem.parametrizations.weight.original.mul_(-2)
    inputs = network.unit(network.stem(IMAGES)).mean(dim=(2, 3))  # what the head sees, the stem on its grid
    enable(network, ["head"], [IMAGES])
    assert torch.allclose(network.head.input_quantizer.fixed_range[:, 0], torch.stack([inputs.min(), inputs.max()]))
    expected = quantizer.weight(2)
    expected.initialise(3 * model.head.weight)
    assert torch.allclose(network.head.weight, expected(3 * model.head.weight))
    assert not torch.allclose(inputs, model.unit(model.stem(IMAGES)).mean(dim=(2, 3)), atol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
def test_a_state_dict_loads_into_a_freshly_attached_network(name, quantizer):
    model, blocks, network = quantized(name, quantizer)
    fresh = attach(build(name, torch.float32), blocks, plan_of(blocks, 3), quantizer).eval()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(IMAGES), network(IMAGES))
    assert not torch.equal(fresh(IMAGES), model(IMAGES))


@pytest.mark.parametrize("quantizer", [*QUANTIZERS, DoReFa(), PACT(), RVQuant()], ids=repr)
def test_channels_last_changes_nothing(quantizer):
    _, _, network = quantized("residual", quantizer)
    expected = network(IMAGES)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(IMAGES.to(memory_format=torch.channels_last)), expected)


def test_a_shared_weight_stays_shared():
    _, _, network = quantized("tied")
    first, second = network.unit.first, network.unit.second
    assert first.parametrizations.weight.original is second.parametrizations.weight.original


class WithAuxiliaryHead(nn.Module):
    """The second head works in training only."""

    def __init__(self):
        super().__init__()
        self.flat, self.head, self.auxiliary = nn.Flatten(), nn.Linear(108, 3), nn.Linear(108, 3)

    def forward(self, x):
        x = self.flat(x)
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_a_layer_that_calibration_does_not_reach_is_no_obstacle():
    model = WithAuxiliaryHead().eval()
    blocks = find_blocks(model)
    assert quantize(model, blocks, plan_of(blocks, 4), [IMAGES])(IMAGES).isfinite().all()


def test_a_plan_of_another_model_is_refused():
    model = build("residual", torch.float32)
    blocks = find_blocks(model)
    plan = plan_of(blocks, 4)
    other = BitPlan({("tail" if n == "head" else n): p for n, p in plan.precisions.items()}, "test", plan.cost)
    with pytest.raises(ValueError, match=r"lacks blocks .*head.*unknown blocks .*tail"):
        quantize(model, blocks, other, [IMAGES])


def test_empty_calibration_is_refused():
    model = build("residual", torch.float32)
    blocks = find_blocks(model)
    with pytest.raises(ValueError, match="calibration is empty"):
        quantize(model, blocks, plan_of(blocks, 4), [])
