"""Choosing a quantisation range: integer limits, and the scale with the least squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLIP_RATIOS = tuple(ratio / 40 for ratio in range(8, 41))  # 0.2 … 1.0 of the largest magnitude
_TINY = 1e-12


def reduce_axes(x: Tensor, channel_axis: int | None) -> tuple[int, ...]:
    """All axes but the channel axis."""
    return tuple(axis for axis in range(x.dim()) if axis != channel_axis)


def integer_limits(bits: int, low: Tensor, high: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Whole-number limits of a grid with 2^b points that covers [low, high] and holds zero exactly.

    Symmetric: −2^(b−1) … 2^(b−1)−1. Otherwise the zero point is rounded, z = round(−low/step) (Jacob et al.,
    1712.05877, §2.1), which gives 0 … 2^b−1 for values that are never negative.
    """
    levels = 2**bits
    if symmetric:
        lowest = torch.full_like(low, -levels // 2)
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        step = ((high - low) / (levels - 1)).clamp_min(_TINY)
        lowest = (low / step).round().clamp(1 - levels, 0)
    return lowest, lowest + levels - 1


def covering_scale(low: Tensor, high: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The smallest step that reaches both ends of [low, high] (min–max range, 1905.03696 §2.5)."""
    below = torch.where(lowest < 0, low.clamp(max=0.0) / lowest.clamp(max=-1.0), torch.zeros_like(low))
    above = torch.where(highest > 0, high.clamp(min=0.0) / highest.clamp(min=1.0), torch.zeros_like(high))
    return torch.maximum(below, above).clamp_min(_TINY)


@torch.no_grad()
def least_squares_ratio(
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    channel_axis: int | None,
    ratios: Sequence[float] = CLIP_RATIOS,
) -> Tensor:
    """The r in `ratios` with the least ‖s·r·clip(round(x/(s·r)), lo, hi) − x‖², one for each channel."""
    axes = reduce_axes(x, channel_axis)
    best_error = torch.full_like(scale, float("inf"))
    best_ratio = torch.ones_like(scale)
    for ratio in ratios:
        step = scale * ratio
        error = ((x / step).round_().clamp_(low, high).mul_(step).sub_(x)).square_().sum(axes, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return best_ratio
