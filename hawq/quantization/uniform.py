"""Uniform quantisation over the range of the tensor (V1, 1905.03696 §2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.ranges import covering_scale, integer_limits, least_squares_ratio, reduce_axes

RANGES = ("minmax", "mse")


@dataclass(frozen=True)
class Uniform:
    """Equal steps over the range of each tensor; weight ranges follow the weights while they are trained.

    Args:
        weight_range: "minmax" covers every value (V1); "mse" clips to the range with the least squared error.
        activation_range: the same choice for layer inputs, made once from calibration data.
        per_channel: one weight range for each output channel instead of one for each tensor.
        symmetric: weight grid −2^(b−1) … 2^(b−1)−1 instead of one with a zero point.

    Raises:
        ValueError: an unknown range.
    """

    weight_range: str = "mse"
    activation_range: str = "mse"
    per_channel: bool = True
    symmetric: bool = True

    def __post_init__(self) -> None:
        for key, value in (("weight_range", self.weight_range), ("activation_range", self.activation_range)):
            if value not in RANGES:
                raise ValueError(f"quantizer.{key}={value!r} is unknown: give {' or '.join(RANGES)}")

    @property
    def name(self) -> str:
        return "uniform"

    def weight(self, bits: int) -> FakeQuantizer:
        axis = 0 if self.per_channel else None
        return UniformQuantizer(bits, axis, clip=self.weight_range == "mse", symmetric=self.symmetric, fixed=False)

    def activation(self, bits: int) -> FakeQuantizer:
        return UniformQuantizer(bits, None, clip=self.activation_range == "mse", symmetric=False, fixed=True)


class UniformQuantizer(FakeQuantizer):
    """Range of the tensor times a clip ratio; `fixed` freezes the range of the data it was initialised with."""

    shaped_by_data = ("ratio", "fixed_range")
    ratio: Tensor
    fixed_range: Tensor

    def __init__(self, bits: int, channel_axis: int | None, *, clip: bool, symmetric: bool, fixed: bool) -> None:
        super().__init__(bits, channel_axis)
        self.clip, self.symmetric, self.fixed = clip, symmetric, fixed
        self.register_buffer("ratio", torch.ones(1))
        self.register_buffer("fixed_range", torch.zeros(2, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        if self.fixed:
            self.fixed_range = torch.stack(self._range(x)).reshape(2, 1)
        self.ratio = torch.ones(1, device=x.device)
        scale, low, high = self.grid(x)
        if self.clip:
            self.ratio = least_squares_ratio(x, scale, low, high, self.channel_axis)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        least, most = (self.fixed_range[0], self.fixed_range[1]) if self.fixed else self._range(x.detach())
        low, high = integer_limits(self.bits, least, most, symmetric=self.symmetric)
        return covering_scale(least, most, low, high) * self.ratio, low, high

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = reduce_axes(x, self.channel_axis)
        return x.amin(axes, keepdim=self.channel_axis is not None), x.amax(axes, keepdim=self.channel_axis is not None)
