"""Choosing a quantisation range: integer limits, and the scale of least squared error."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from hawq.quantization.fake_quantize import nearest

CLIP_RATIOS = tuple(ratio / 40 for ratio in range(8, 41))  # 0.2 … 1.0 of the largest magnitude
_TWO_CODES_RATIOS = tuple(ratio / 40 for ratio in range(1, 41))
_TINY = 1e-12


def reduce_axes(x: Tensor, channel_axis: int | None) -> tuple[int, ...]:
    """All axes of x except the channel axis."""
    return tuple(axis for axis in range(x.dim()) if axis != channel_axis)


def percentile_range(x: Tensor, percentile: float, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value per channel without the lowest and highest 100 − `percentile` %; each (channels,)."""
    rows = x.reshape(1, -1) if channel_axis is None else x.movedim(channel_axis, 0).flatten(1)
    rank = max(ceil(rows.shape[1] * percentile / 100), 1)
    return rows.kthvalue(rows.shape[1] + 1 - rank, 1).values, rows.kthvalue(rank, 1).values


def _least(x: Tensor) -> float:
    """The smallest step: one that can be divided by in the type of x."""
    return max(_TINY, torch.finfo(x.dtype).tiny)


def lowest_signed(bits: int) -> float:
    """−2^(b−1), the lowest code of two's complement; −½ at one bit, where codes ±½ stand for −s and s."""
    return -(2.0 ** (bits - 1)) if bits > 1 else -0.5


def integer_limits(bits: int, low: Tensor, high: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Whole-number limits of a grid with 2^b points that covers [low, high] and represents zero exactly.

    Symmetric: −2^(b−1) … 2^(b−1)−1. Otherwise the zero point is rounded, z = round(−low/step) (Jacob et al.,
    1712.05877, §2.1), which gives 0 … 2^b−1 for values that are never negative. One bit is too few for zero and both
    signs: the grid is then −½, ½ if symmetric, and otherwise that or 0, 1 or −1, 0, whichever comes closest.

    Returns:
        (lo, hi), each of the shape of `low` and `high`.
    """
    levels = 2**bits
    if symmetric:
        lowest = torch.full_like(low, lowest_signed(bits))
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        step = ((high - low) / (levels - 1)).clamp_min(_least(low))
        finest = 1 if bits > 1 else 2  # halves at one bit
        lowest = ((low / step * finest).round() / finest).clamp(1 - levels, 0)
    return lowest, lowest + levels - 1


def covering_scale(low: Tensor, high: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The smallest step that reaches both ends of [low, high] (min–max range, 1905.03696 §2.5)."""
    below = torch.where(lowest < 0, low.clamp(max=0.0) / lowest.clamp(max=-0.5), torch.zeros_like(low))
    above = torch.where(highest > 0, high.clamp(min=0.0) / highest.clamp(min=0.5), torch.zeros_like(high))
    return torch.maximum(below, above).clamp_min(_least(low))


@torch.no_grad()
def least_squares_ratio(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, channel_axis: int | None) -> Tensor:
    """The r of `CLIP_RATIOS` with the smallest ‖s·r·clip(round(x/(s·r)), lo, hi) − x‖², one per channel.

    On grids of two codes c it is then fitted, s·r = ⟨x, c⟩/⟨c, c⟩: for ±½ that is ±mean|x| (BWN, 1603.05279, eq. 6).
    """
    axes = reduce_axes(x, channel_axis)
    two_codes = bool((high - low == 1).all())
    best_error = torch.full_like(scale, float("inf"))
    best_ratio = torch.ones_like(scale)
    for ratio in _TWO_CODES_RATIOS if two_codes else CLIP_RATIOS:
        step = scale * ratio
        error = nearest(x, step, low, high).mul_(step).sub_(x).square_().sum(axes, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    if not two_codes:
        return best_ratio
    codes = nearest(x, scale * best_ratio, low, high)
    fitted = (x * codes).sum(axes, keepdim=True) / codes.square().sum(axes, keepdim=True) / scale
    return torch.where(fitted > 0, fitted, best_ratio)
