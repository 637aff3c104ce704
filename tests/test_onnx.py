"""ONNX files, run by ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import torch
from networks import build, samples
from sensitivities import plan_of

from hawq.blocks import find_blocks
from hawq.export import export_onnx, load, save
from hawq.export.onnx import _RoundAndClip
from hawq.quantization import BIT_WIDTHS, LSQ, PACT, DoReFa, RVQuant, Uniform, quantize

IMAGES = samples(8, torch.float32)[0]


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


def quantized(quantizer=None):
    model = build("residual", torch.float32)
    blocks = find_blocks(model)
    return quantize(model, blocks, plan_of(blocks, [8, 3, 4], 4), [IMAGES], quantizer)


@pytest.mark.parametrize("traced_with", [1, 2])
@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(symmetric=False), DoReFa(), PACT(), RVQuant(10)], ids=repr)
def test_onnx_runtime_agrees_at_any_batch_size(quantizer, traced_with, tmp_path):
    network = quantized(quantizer)
    expected = network(IMAGES).detach().numpy()
    path = export_onnx(network, tmp_path / "folder" / "model.onnx", IMAGES[:traced_with])
    for size in (1, 2, 5):
        np.testing.assert_allclose(run(path, IMAGES[:size]), expected[:size], atol=1e-4)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), DoReFa(), PACT(), RVQuant(10)], ids=repr)
def test_plain_operators_are_the_quantiser_bit_for_bit(quantizer, bits):
    x = torch.randn(999, generator=torch.Generator().manual_seed(bits))
    made = quantizer.activation(bits)
    made.initialise(x)
    assert torch.equal(_RoundAndClip(*made.grid(x), keeps_large=made.keeps_large)(x), made(x))


def test_the_exported_network_stays_as_it_is(tmp_path):
    network = quantized()
    before, expected = set(network.state_dict()), network(IMAGES)
    export_onnx(network, tmp_path / "model.onnx", IMAGES)
    assert set(network.state_dict()) == before
    assert torch.equal(network(IMAGES), expected)


def test_a_loaded_network_can_be_exported(tmp_path):
    model = build("mlp", torch.float32)
    blocks = find_blocks(model)
    loaded = load(save(quantize(model, blocks, plan_of(blocks, 4), [IMAGES]), tmp_path / "packed"), model)
    path = export_onnx(loaded, tmp_path / "model.onnx", IMAGES)
    np.testing.assert_allclose(run(path, IMAGES[:3]), loaded(IMAGES[:3]).detach().numpy(), atol=1e-4)
