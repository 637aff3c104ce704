"""Uniform quantisation over the range of the tensor (V1, 1905.03696 §2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.ranges import (
    covering_scale,
    integer_limits,
    least_squares_ratio,
    percentile_range,
    reduce_axes,
)

RANGES = ("minmax", "mse", "percentile")


@component("quantizer/uniform")
@dataclass(frozen=True)
class Uniform:
    """Equal steps over the range of each tensor; weight ranges follow the weights while they are trained.

    Args:
        weight_range: "minmax" covers every value (V1), "percentile" all but the outermost ones; "mse" clips to the
            range with the least squared error.
        activation_range: the same choice for layer inputs, made once from calibration data.
        per_channel: one weight range per output channel instead of one per tensor.
        symmetric: weight grid −2^(b−1) … 2^(b−1)−1 instead of one with a zero point.
        percentile: a "percentile" range leaves out 100 − `percentile` % of the values at each end; above 50 to 100.

    Raises:
        ValueError: an unknown range, a percentile outside 50 … 100.
    """

    weight_range: str = "mse"
    activation_range: str = "mse"
    per_channel: bool = True
    symmetric: bool = True
    percentile: float = 99.9

    def __post_init__(self) -> None:
        check_choice("weight_range", self.weight_range, RANGES)
        check_choice("activation_range", self.activation_range, RANGES)
        check_range("percentile", self.percentile, above=50, most=100)

    @property
    def name(self) -> str:
        """The option of the group `quantizer` that it stands for."""
        return "uniform"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        axis = 0 if self.per_channel else None
        covered = self._covered(self.weight_range)
        return UniformQuantizer(bits, axis, percentile=covered, symmetric=self.symmetric, fixed=False)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        covered = self._covered(self.activation_range)
        return UniformQuantizer(bits, None, percentile=covered, symmetric=False, fixed=True)

    def _covered(self, kind: str) -> float | None:
        return {"minmax": 100.0, "mse": None, "percentile": self.percentile}[kind]


class UniformQuantizer(FakeQuantizer):
    """The range of the tensor, each end times a ratio; `fixed` freezes the range of the data it was initialised with.

    The ratios clip to a percentile of that data, or, where `percentile` is None, to the least squared error.
    """

    shaped_by_data = ("low_ratio", "high_ratio", "fixed_range")
    low_ratio: Tensor
    high_ratio: Tensor
    fixed_range: Tensor

    def __init__(
        self, bits: int, channel_axis: int | None, *, percentile: float | None, symmetric: bool, fixed: bool
    ) -> None:
        super().__init__(bits, channel_axis)
        self.percentile, self.symmetric, self.fixed = percentile, symmetric, fixed
        self.register_buffer("low_ratio", torch.ones(1))
        self.register_buffer("high_ratio", torch.ones(1))
        self.register_buffer("fixed_range", torch.zeros(2, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Chooses the range from `x` and switches the quantiser on."""
        least, most = self._range(x)
        if self.fixed:
            self.fixed_range = _ends(least, most)
        self.low_ratio = self.high_ratio = torch.ones(1, dtype=x.dtype, device=x.device)
        if self.percentile is None:
            self.low_ratio = least_squares_ratio(x, *self.grid(x), self.channel_axis)
            self.high_ratio = self.low_ratio.clone()
        else:
            low, high = percentile_range(x, self.percentile, self.channel_axis)
            empty = (low == 0) & (high == 0)  # nearly all values are 0: the range stays as it is
            self.low_ratio = _ratio(low, least.reshape(-1), empty).reshape(least.shape or 1)
            self.high_ratio = _ratio(high, most.reshape(-1), empty).reshape(most.shape or 1)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        least, most = (self.fixed_range[0], self.fixed_range[1]) if self.fixed else self._range(x.detach())
        least, most = least * self.low_ratio, most * self.high_ratio
        low, high = integer_limits(self.bits, least, most, symmetric=self.symmetric)
        return covering_scale(least, most, low, high), low, high

    @torch.no_grad()
    def hold(self, x: Tensor) -> None:
        """Keeps the range that `x` has."""
        if not self.fixed:
            self.fixed_range, self.fixed = _ends(*self._range(x)), True

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the quantiser is on, and whether its range is fixed."""
        return {**super().get_extra_state(), "fixed": self.fixed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_extra_state` gave."""
        super().set_extra_state(state)
        self.fixed = state.get("fixed", self.fixed)  # states of earlier versions do not hold it

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = reduce_axes(x, self.channel_axis)
        return x.amin(axes, keepdim=self.channel_axis is not None), x.amax(axes, keepdim=self.channel_axis is not None)


def _ends(least: Tensor, most: Tensor) -> Tensor:
    """Both ends of a range, (2, 1), or (2, ...) where it has one per channel."""
    return torch.stack([least, most]).reshape(2, *(least.shape or (1,)))


def _ratio(part: Tensor, whole: Tensor, empty: Tensor) -> Tensor:
    """part / whole, from 0 to 1; 1 where the denominator is 0, and where `empty`."""
    return torch.where(empty | (whole == 0), 1.0, part / whole).clamp(0, 1)
