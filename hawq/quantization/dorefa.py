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
        """The option of the group `quantizer` that it stands for."""
        return "dorefa"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        return SquashedQuantizer(bits)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        return UniformQuantizer(bits, None, percentile=100.0, symmetric=False, fixed=True)


class SquashedQuantizer(FakeQuantizer):
    """q = m·(2·quantise(½ + t/(2m)) − 1), t = tanh(w), m = max|t|: 2^b levels from −m to m, none at zero.

    At one bit ±mean|t| (1606.06160, eq. 7).
    """

    def initialise(self, x: Tensor) -> None:
        """Switches the quantiser on; the range follows the weights."""
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for a squashed `x`, each broadcastable against it."""
        steps, magnitudes = 2**self.bits - 1, x.detach().abs()
        scale = 2 * (magnitudes.max() if self.bits > 1 else magnitudes.mean()).reshape(1) / steps
        high = torch.full_like(scale, steps / 2)
        return scale.clamp_min(torch.finfo(x.dtype).tiny), -high, high

    def forward(self, x: Tensor) -> Tensor:
        """tanh(x) on the grid, of the shape of x; x itself while switched off."""
        return super().forward(x.tanh()) if self.enabled else x

    def positions(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tanh(x)/s, s, lo, hi), as `FakeQuantizer.positions`."""
        return super().positions(x.tanh())

    @torch.no_grad()
    def preimage(self, values: Tensor) -> Tensor:
        """atanh(values), finite: tanh rounds to ±1 from 9 on."""
        most = 1 - torch.finfo(values.dtype).eps
        return values.clamp(-most, most).atanh()

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(codes of tanh(x), scale, lo), as `FakeQuantizer.codes`."""
        return super().codes(x.tanh())
