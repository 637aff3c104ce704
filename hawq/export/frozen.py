"""A quantiser whose grid is given."""

from __future__ import annotations

from torch import Tensor

from hawq.quantization import FakeQuantizer


class FrozenQuantizer(FakeQuantizer):
    """A quantiser with a fixed grid, as read back from a file.

    Args:
        bits: 1 to 8.
        scale: step of the grid, broadcastable against what is quantised.
        low: its lowest code, likewise.
        keeps_large: whether values above the grid pass unchanged.
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, scale: Tensor, low: Tensor, *, keeps_large: bool) -> None:
        super().__init__(bits)
        self.keeps_large = keeps_large
        self.register_buffer("scale", scale)
        self.register_buffer("low", low)
        self.register_buffer("high", low + 2**bits - 1)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) as stored, whatever `x` is."""
        return self.scale, self.low, self.high
