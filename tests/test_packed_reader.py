"""The reader outside the project against hawq.load, bit for bit."""

import numpy as np
import pytest
import torch
from networks import build, samples
from read_packed_file import quantize_input, read
from sensitivities import plan_of

from hawq.blocks import find_blocks
from hawq.export import load, save
from hawq.quantization import LSQ, RVQuant, Uniform, quantize

IMAGES = samples(8, torch.float32)[0]


@pytest.mark.parametrize("bits", [[1, 3, 8], [2, 5, 7]])
@pytest.mark.parametrize("quantizer", [LSQ(), LSQ(residuals=8), Uniform(symmetric=False), RVQuant(10)], ids=repr)
def test_numpy_reads_what_we_load(quantizer, bits, tmp_path):
    model = build("residual", torch.float32)
    blocks = find_blocks(model)
    path = save(quantize(model, blocks, plan_of(blocks, bits, 3), [IMAGES], quantizer), tmp_path / "packed")
    loaded = load(path, model)
    tensors, grids, _ = read(path)
    for name, values in tensors.items():
        expected = loaded
        for part in name.split("."):
            expected = getattr(expected, part)
        assert np.array_equal(values.view(np.int32), expected.detach().numpy().view(np.int32)), name
    quantizers = {n: m.input_quantizer for n, m in loaded.named_modules() if hasattr(m, "input_quantizer")}
    quantizers |= dict(getattr(loaded, "residual_quantizers", {}).items())
    assert set(grids) == set(quantizers)
    for name, grid in grids.items():
        x = torch.randn(999, generator=torch.Generator().manual_seed(1)) * 3
        mine = quantize_input(x.numpy(), *grid, keeps_large=quantizers[name].keeps_large)
        assert np.array_equal(mine, quantizers[name](x).detach().numpy())


@pytest.mark.parametrize("place", [0.3, 0.9])
def test_a_damaged_file_is_refused(place, tmp_path):
    model = build("mlp", torch.float32)
    blocks = find_blocks(model)
    path = save(quantize(model, blocks, plan_of(blocks, 4, 4), [IMAGES]), tmp_path / "packed")
    raw = bytearray(path.read_bytes())
    raw[-int((1 - place) * 100) - 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        read(path)
