"""Activations that stay float at random while a unit is reconstructed (QDrop, 2203.05740)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hawq.quantization import FakeQuantizer, input_quantizer
from hawq.quantization.attaching import INPUT


class Dropped(nn.Module):
    """A quantiser that leaves each value float with probability `drop` (2203.05740, eq. 8)."""

    def __init__(self, quantizer: FakeQuantizer, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer, self._drop, self._generator = quantizer, drop, generator

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, in places float; of the shape of x."""
        return mixed(self.quantizer(x), x, self._drop, self._generator)


def mixed(quantized: Tensor, exact: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Each value of `exact` with probability `drop`, else of `quantized`; all of one shape."""
    return torch.where(_drawn_like(exact, drop, generator), exact, quantized)


def _drawn_like(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """True with probability `share` (to 2⁻¹⁶), in the shape and the memory format of x.

    Each 64 random bits decide four values: on a processor a seventh of the time of as many draws by `bernoulli_`.
    """
    if share >= 1:
        return torch.ones_like(x, dtype=torch.bool)
    count = x.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    draws.random_(-(2**63), None, generator=generator)
    strides = torch.empty_like(x, dtype=torch.bool).stride()  # those of x, but dense
    return draws.view(torch.int16)[:count].as_strided(x.shape, strides) < int(share * 2**16) - 2**15


@contextmanager
def dropped(layers: Sequence[nn.Module], drop: float, generator: torch.Generator) -> Iterator[None]:
    """While active, the input quantisers of `layers` drop at random."""
    made = {layer: one for layer in layers if drop and (one := input_quantizer(layer)) is not None and one.enabled}
    try:
        for layer, quantizer in made.items():
            setattr(layer, INPUT, Dropped(quantizer, drop, generator))
        yield
    finally:
        for layer, quantizer in made.items():
            setattr(layer, INPUT, quantizer)
