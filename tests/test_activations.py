"""Curvature by activations against explicit Hessians of each sample; their quantisation errors against direct ones."""

from functools import cache

import pytest
import torch
from networks import NETWORKS, build, cut, samples
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import BlockHessian, activation_traces
from hawq.quantization import LSQ, Uniform
from hawq.sensitivity import analyze, block_weights

NUM_SAMPLES = 5
BATCH = samples(NUM_SAMPLES)


def call_with_shift(model, layer, image, shift):
    """The outputs when `shift` is added to the input of one layer."""
    handle = dict(model.named_modules())[layer].register_forward_pre_hook(lambda _, inputs: (inputs[0] + shift,))
    try:
        return model(image)
    finally:
        handle.remove()


def input_of(model, layer, image):
    seen = []
    handle = dict(model.named_modules())[layer].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(image)
    handle.remove()
    return seen[0].detach()


def explicit_trace(model, layers):
    """Mean over samples of Σ over layers of Tr(∂²ℓ/∂a²), from whole Hessians."""
    total = 0.0
    for image, target in zip(*BATCH, strict=True):
        for layer in layers:
            zero = torch.zeros_like(input_of(model, layer, image[None]))

            def loss(shift, layer=layer, image=image, target=target):
                return F.cross_entropy(call_with_shift(model, layer, image[None], shift), target[None])

            dense = torch.autograd.functional.hessian(loss, zero)
            total += float(dense.reshape(zero.numel(), zero.numel()).trace())
    return total / NUM_SAMPLES


@cache
def explicit_traces(name):
    model = build(name)
    blocks = find_blocks(model, BATCH[0][:1])
    return {b.name: explicit_trace(model, [layer for layer in b.layers if layer not in b.image_layers]) for b in blocks}


@pytest.mark.parametrize("sizes", [(5,), (3, 2)], ids=str)
@pytest.mark.parametrize("name", ["residual", "tied", "depthwise", "mlp"])
def test_traces_are_means_of_those_of_the_samples(name, sizes):
    model = build(name)
    blocks = find_blocks(model, BATCH[0][:1])
    layers = {b.name: [layer for layer in b.layers if layer not in b.image_layers] for b in blocks}
    parameters = {b.name: block_weights(model, b) for b in blocks}
    operator = BlockHessian(model, parameters, cut(BATCH, sizes), F.cross_entropy)
    for block, estimate in activation_traces(operator, layers, 0.05, 60, seed=0).items():
        assert abs(estimate.value - explicit_traces(name)[block]) <= 4 * estimate.error + 1e-12, block


def test_the_image_is_no_activation():
    """And neither curvature nor error of it are counted; without `activations` nothing is measured at all."""
    model = build("residual")
    blocks = find_blocks(model)
    for row in analyze(model, blocks, [BATCH], activations=True).rows:
        image = row.block.name == "stem"
        assert (row.activation_trace.value == 0.0) == image
        assert all((error == 0.0) == image for error in row.activation_errors.values())
    for row in analyze(model, blocks, [BATCH]).rows:
        assert row.activation_trace is None and row.activation_errors is None


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform("minmax")], ids=["lsq", "minmax"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "mlp"])
def test_errors_are_means_over_samples_of_what_quantisation_does(name, quantizer):
    model = build(name, torch.float32)
    images, targets = samples(NUM_SAMPLES, torch.float32)
    for row in analyze(model, find_blocks(model), [(images, targets)], quantizer=quantizer, activations=True).rows:
        for bits, error in row.activation_errors.items():
            expected = 0.0
            for layer in row.block.layers:
                if layer in row.block.image_layers:
                    continue
                values, grid = input_of(model, layer, images), quantizer.activation(bits)
                grid.initialise(values)
                expected += float((grid(values) - values).square().sum()) / NUM_SAMPLES
            assert error == pytest.approx(expected, rel=1e-4)


def test_state_is_left_as_it_was():
    model = build("residual").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    analyze(model, find_blocks(model), [BATCH], activations=True)
    assert model.training and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
