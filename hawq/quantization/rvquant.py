"""Value-aware quantisation: few bits for most, full precision for the few large ones (Park et al., 1804.07802)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.checks import check_range
from hawq.components import component
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.ranges import lowest_signed


@component("quantizer/rvquant")
@dataclass(frozen=True)
class RVQuant:
    """Values up to T in equal steps, larger ones unchanged (1804.07802, §3); `large_percent` of |x| lie above T.

    The quantised copy for the backward pass, which saves memory in training, is not made. W-Comp does not count the
    large values, as in the papers' tables; the packed file stores them.

    Args:
        large_percent: share of values kept in full precision.

    Raises:
        ValueError: a share outside 0 … 50 %.
    """

    large_percent: float = 2.0

    def __post_init__(self) -> None:
        check_range("large_percent", self.large_percent, least=0, most=50)

    @property
    def name(self) -> str:
        """The option of the group `quantizer` that it stands for."""
        return "rvquant"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        return ValueAware(bits, self.large_percent)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        return ValueAware(bits, self.large_percent)


class ValueAware(FakeQuantizer):
    """A grid over [−T, T], or [0, T] for values that are never negative; values above T in magnitude are kept."""

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
        """Chooses the range from `x` and switches the quantiser on."""
        magnitudes = x.abs().reshape(-1)
        kept = magnitudes.numel() - round(magnitudes.numel() * self.large_percent / 100)
        threshold = magnitudes.kthvalue(max(kept, 1)).values.reshape(1)
        self.low = torch.full_like(threshold, lowest_signed(self.bits) if bool((x < 0).any()) else 0)
        self.high = self.low + 2**self.bits - 1
        self.scale = (threshold / self.high).clamp_min(torch.finfo(x.dtype).tiny)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        return self.scale, self.low, self.high
