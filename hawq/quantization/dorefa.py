"""DoReFa-Net's quantiser (Zhou et al., 1606.06160)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.components import component
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.uniform import UniformQuantizer


@component("quantizer/dorefa")
@dataclass(frozen=True)
class DoReFa:
    """Weights squashed by tanh, activations in equal steps (1606.06160, eq. 9 and 11).

    The published ranges, [−1, 1] and [0, 1], are meant for training from scratch. Here weights keep the range of
    tanh(w), which is w itself for small weights, and activations that of the calibration data, so that a trained
    network can be fine-tuned.
    """

    @property
    def name(self) -> str:
        return "dorefa"

    def weight(self, bits: int) -> FakeQuantizer:
        return SquashedQuantizer(bits)

    def activation(self, bits: int) -> FakeQuantizer:
        return UniformQuantizer(bits, None, percentile=100.0, symmetric=False, fixed=True)


class SquashedQuantizer(FakeQuantizer):
    """q = m·(2·quantise(½ + t/(2m)) − 1), t = tanh(w), m = max|t|: 2^b levels from −m to m, none at zero.

    At one bit ±mean|t| (1606.06160, eq. 7).
    """

    def initialise(self, x: Tensor) -> None:
        self.enabled = True  # the range follows the weights

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For a squashed `x`."""
        steps, magnitudes = 2**self.bits - 1, x.detach().abs()
        scale = 2 * (magnitudes.max() if self.bits > 1 else magnitudes.mean()).reshape(1) / steps
        high = torch.full_like(scale, steps / 2)
        return scale.clamp_min(torch.finfo(x.dtype).tiny), -high, high

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.tanh()) if self.enabled else x

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().codes(x.tanh())
