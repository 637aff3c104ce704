"""PACT: a learned clip of activations (Choi et al., 1805.06085)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.components import component
from hawq.quantization.dorefa import SquashedQuantizer
from hawq.quantization.fake_quantize import FakeQuantizer, fake_quantize
from hawq.quantization.ranges import lowest_signed


@component("quantizer/pact")
@dataclass(frozen=True)
class PACT:
    """Weights as in DoReFa, activations clipped at a trained α (1805.06085, eq. 1 to 3)."""

    @property
    def name(self) -> str:
        """The option of the group `quantizer` that it stands for."""
        return "pact"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        return SquashedQuantizer(bits)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        return LearnedClip(bits)


class LearnedClip(FakeQuantizer):
    """y = quantise(clip(x, 0, α)); ∂y/∂α = 1 where x > α, else 0.

    For inputs that go below zero the range is [lo/hi · α, α], and ∂y/∂α = lo/hi where x < lo/hi · α.
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.alpha = nn.Parameter(torch.ones(1))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.full((1,), 2.0**bits - 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Chooses the range from `x` and switches the quantiser on."""
        self.alpha.data = x.abs().max().reshape(1)
        self.low = torch.full_like(self.alpha, lowest_signed(self.bits) if bool((x < 0).any()) else 0)
        self.high = self.low + 2**self.bits - 1
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        tiny = torch.finfo(self.alpha.dtype).tiny
        return (self.alpha.abs() / self.high).clamp_min(tiny), self.low, self.high

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, of the shape of x; x itself while switched off."""
        return fake_quantize(x, *self.grid(x), clip_only=True) if self.enabled else x
