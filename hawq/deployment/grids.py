"""What a quantised network holds in integers: codes and steps of its weights, grids of its activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from hawq.quantization import FakeQuantizer, weight_quantizer

INT4, INT8 = (-8, 7), (-128, 127)


@dataclass(frozen=True)
class WeightGrid:
    """The codes of one layer's weight, and what they stand for: weight = code · step, bit for bit.

    Args:
        layer: qualified name.
        bits: bit-width of the plan.
        codes: (out, in, ...) float64, whole numbers, or all of them whole plus ½.
        steps: (out,) or (1,) float32.
    """

    layer: str
    bits: int
    codes: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class ActivationGrid:
    """s · clip(round(x/s), low, high) on one activation.

    Args:
        name: of the layer whose input it is, or of the residual quantiser.
        bits: bit-width.
        step, low, high: of the grid; the limits are whole numbers, or both whole plus ½.
        keeps_large: values above the grid pass unchanged.
        unsigned: stored as UINT8 also where it has negative values: ONNX Runtime joins integers of one type only.
    """

    name: str
    bits: int
    step: float
    low: float
    high: float
    keeps_large: bool
    unsigned: bool

    @cached_property
    def integer(self) -> bool:
        """Whether 8-bit integers hold the grid."""
        return not self.keeps_large and self.low % 1 == 0

    @property
    def storage(self) -> str:
        """ "uint8", "int8", or "float" for a grid that stays in float operators."""
        if not self.integer:
            return "float"
        signed = self.low < 0 and self.low >= INT8[0] and self.high <= INT8[1] and not self.unsigned
        return "int8" if signed else "uint8"

    @property
    def zero_point(self) -> int:
        """The stored integer that stands for 0."""
        return -int(self.low) if self.storage == "uint8" else 0


def weight_grids(model: nn.Module) -> dict[str, WeightGrid]:
    """Layer → its codes, of every weight that INT8 holds; others, and those with large values, stay float."""
    found = {}
    for name, layer in model.named_modules():
        quantizer = weight_quantizer(layer)
        if quantizer is None or not quantizer.enabled or quantizer.keeps_large:
            continue
        original = layer.parametrizations.weight.original.detach()  # type: ignore[union-attr]
        codes, scale, _ = quantizer.codes(original)
        grid = WeightGrid(name, quantizer.bits, _numpy(codes), _numpy(scale).reshape(-1).astype(np.float32))
        whole = grid.codes * (2 if np.any(grid.codes % 1) else 1)
        if INT8[0] <= whole.min() and whole.max() <= INT8[1]:
            found[name] = grid
    return found


def activation_grid(name: str, quantizer: FakeQuantizer, *, unsigned: bool) -> ActivationGrid:
    """The grid of one quantiser of activations."""
    device = next(iter([*quantizer.buffers(), *quantizer.parameters()])).device
    step, low, high = (float(part.detach().reshape(-1)[0]) for part in quantizer.grid(torch.zeros(1, device=device)))
    return ActivationGrid(name, quantizer.bits, step, low, high, quantizer.keeps_large, unsigned)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().double().cpu().numpy()
    return array
