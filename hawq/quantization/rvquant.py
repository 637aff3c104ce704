"""Value-aware quantisation: few bits for most, full precision for the few large ones (Park et al., 1804.07802)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.components import component
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.ranges import lowest_signed


@component("quantizer/rvquant")
@dataclass(frozen=True)
class RVQuant:
    """Values up to T in equal steps, larger ones as they are (1804.07802, §3); T leaves out `large_percent` of |x|.

    The quantised copy of the backward pass, which saves memory in training, is not made. W-Comp does not count the
    large values, as in the papers' tables; the packed file stores them.

    Args:
        large_percent: share of values kept in full precision.

    Raises:
        ValueError: a share outside 0 … 50 %.
    """

    large_percent: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.large_percent <= 50:
            raise ValueError(f"quantizer.large_percent={self.large_percent} is out of range: give 0 to 50")

    @property
    def name(self) -> str:
        return "rvquant"

    def weight(self, bits: int) -> FakeQuantizer:
        return ValueAware(bits, self.large_percent)

    def activation(self, bits: int) -> FakeQuantizer:
        return ValueAware(bits, self.large_percent)


class ValueAware(FakeQuantizer):
    """A grid over [−T, T], or [0, T] for values that are never negative; what lies above T in magnitude is kept."""

    keeps_large = True
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, large_percent: float) -> None:
        super().__init__(bits)
        self.large_percent = large_percent
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.ones(1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        magnitudes = x.abs().reshape(-1)
        kept = magnitudes.numel() - round(magnitudes.numel() * self.large_percent / 100)
        threshold = magnitudes.kthvalue(max(kept, 1)).values.reshape(1)
        self.low = torch.full_like(threshold, lowest_signed(self.bits) if bool((x < 0).any()) else 0)
        self.high = self.low + 2**self.bits - 1
        self.scale = (threshold / self.high).clamp_min(torch.finfo(x.dtype).tiny)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scale, self.low, self.high
