"""Learned step size quantisation (LSQ, Esser et al., 1902.08153)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.checks import check_range
from hawq.components import component
from hawq.quantization.fake_quantize import FakeQuantizer, nearest
from hawq.quantization.ranges import covering_scale, integer_limits, least_squares_ratio, reduce_axes


@component("quantizer/lsq")
@dataclass(frozen=True)
class LSQ:
    """Steps trained with the weights, starting at the least squared error (LSQ, 1902.08153).

    Args:
        per_channel: one weight step per output channel instead of one per tensor.
        balanced_bits: up to this bit-width a layer's weights may have as many codes below zero as above, ±½, ±1½, …,
            and none at zero; they are used where they leave a smaller squared error than the published
            −2^(b−1) … 2^(b−1)−1 (not in sparse layers). 0 or 1: published codes from two bits on.
        residuals: bits of trained quantisers on what enters additions, concatenations and poolings, so that the trained
            network is the one that deploy.profile=integer writes; None leaves them float.

    Raises:
        ValueError: a bit-width out of range.
    """

    per_channel: bool = True
    balanced_bits: int = 2
    residuals: int | None = None

    def __post_init__(self) -> None:
        check_range("balanced_bits", self.balanced_bits, least=0, most=8)
        check_range("residuals", self.residuals, least=2, most=8, optional=True)

    @property
    def name(self) -> str:
        """The option of the group `quantizer` that it stands for."""
        return "lsq"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        balanced = bits <= self.balanced_bits
        return LearnedStep(bits, 0 if self.per_channel else None, symmetric=True, balanced=balanced)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        return LearnedStep(bits, None, symmetric=False)


class LearnedStep(FakeQuantizer):
    """One trained step s; its gradient is scaled by 1/√(N·hi), N values sharing the step (1902.08153, §2.2)."""

    shaped_by_data = ("scale",)
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, channel_axis: int | None, *, symmetric: bool, balanced: bool = False) -> None:
        super().__init__(bits, channel_axis)
        self.symmetric, self.balanced = symmetric, balanced
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.ones(1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Chooses the range from `x` and switches the quantiser on."""
        axes = reduce_axes(x, self.channel_axis)
        keep = self.channel_axis is not None
        least, most = x.amin(axes, keepdim=keep), x.amax(axes, keepdim=keep)
        limits = integer_limits(self.bits, least, most, symmetric=self.symmetric)
        low, high = (limit.reshape(-1)[:1] for limit in limits)  # a trained step keeps one integer range
        grids = [(low, high), ((low - high) / 2, (high - low) / 2)][: 1 + self.balanced]
        scales = []
        for grid in grids:
            covering = covering_scale(least, most, *grid)
            scales.append(covering * least_squares_ratio(x, covering, *grid, self.channel_axis))
        best = 0
        if self.balanced:
            errors = [_squared_error(x, scale, *grid) for scale, grid in zip(scales, grids, strict=True)]
            best = errors.index(min(errors))
        self.low, self.high = grids[best]
        self.scale.data = scales[best] if keep else scales[best].reshape(1)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        sharing = x.numel() / self.scale.numel()
        if not self.symmetric and x.dim() > 1:
            sharing /= x.shape[0]  # activations: the step is shared within a sample, not over the batch
        factor = (sharing * float(self.bits_above_zero())) ** -0.5
        scale = self.scale.abs().clamp_min(torch.finfo(x.dtype).tiny)
        return _scale_gradient(scale, factor), self.low, self.high

    def bits_above_zero(self) -> int:
        """Largest positive code, Q_P of the paper, at least 1."""
        return max(2 ** (self.bits - 1) - 1, 1) if self.symmetric else 2**self.bits - 1


def _squared_error(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> float:
    """‖s·clip(round(x/s), lo, hi) − x‖²."""
    return float((nearest(x, scale, low, high) * scale - x).double().square().sum())


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x forward, `factor` times the gradient backward."""
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())
