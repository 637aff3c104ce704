"""Rounding up or down as a variable that is optimised (AdaRound, 2004.10568)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hawq.quantization import FakeQuantizer

ZETA, GAMMA = 1.1, -0.1
"""Ends of the stretched sigmoid (2004.10568, eq. 23)."""

_ON_GRID = 1e-3  # of a step: closer values are points of the grid, and have nothing to choose


class SoftRounding(nn.Module):
    """Takes the place of a weight's quantiser: s · clip(⌊W/s⌋ + h(V), lo, hi), one V per weight.

    h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1) begins at the fraction that W/s leaves (2004.10568, eq. 22 and 23). Weights on
    a point of the grid or outside its range stay where rounding to nearest puts them.

    Args:
        quantizer: of the weight, switched on.
        weight: the float weight (out, in, ...).
    """

    base: Tensor
    scale: Tensor
    is_free: Tensor
    large: Tensor | None

    def __init__(self, quantizer: FakeQuantizer, weight: Tensor) -> None:
        super().__init__()
        self._quantizer = (quantizer,)  # in a tuple: it is no part of this module
        positions, scale, low, high = quantizer.positions(weight.detach())
        nearest = quantizer.codes(weight.detach())[0]
        half = low - low.floor()
        floor = (positions - half).floor() + half
        fraction = positions - floor
        inside = (positions > low) & (positions < high)
        is_free = inside & (fraction > _ON_GRID) & (fraction < 1 - _ON_GRID)
        large = quantizer.is_large(weight.detach()) if quantizer.keeps_large else None
        if large is not None:
            is_free &= ~large
        start = ((ZETA - GAMMA) / (fraction.clamp(_ON_GRID, 1 - _ON_GRID) - GAMMA) - 1).log().neg()
        self.register_buffer("base", torch.where(is_free, floor, nearest))
        self.register_buffer("scale", scale.detach())
        self.register_buffer("is_free", is_free)
        self.register_buffer("large", large)
        self.variable = nn.Parameter(start)

    def up(self) -> Tensor:
        """h(V) in 0 … 1, the share of a step that each weight is rounded up by; 0 for weights that have no choice."""
        return (self.variable.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1) * self.is_free

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight, of the shape of `weight`."""
        return self._with_large((self.base + self.up()) * self.scale, weight)

    def undecided(self, beta: float) -> Tensor:
        """Σ 1 − |2h(V) − 1|^β over weights that have a choice (2004.10568, eq. 24); 0 once all are decided."""
        distance = (2 * self.up() - 1).abs()
        return ((1 - distance.pow(beta)) * self.is_free).sum()

    def num_free(self) -> int:
        """Weights that have a choice."""
        return int(self.is_free.sum())

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes once each rounding is decided, up where h ≥ ½; of the shape of the weight."""
        return self.base + (self.up() >= 0.5)

    @torch.no_grad()
    def rounded(self, weight: Tensor) -> Tensor:
        """The weight moved to these codes: its quantiser, with the grid it has, leaves it there."""
        return self._with_large(self._quantizer[0].preimage(self.codes() * self.scale), weight)

    def _with_large(self, values: Tensor, weight: Tensor) -> Tensor:
        return values if self.large is None else torch.where(self.large, weight, values)
