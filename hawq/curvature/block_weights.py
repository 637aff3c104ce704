"""The weights of every block, and flat vectors in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor


class BlockWeights:
    """Block name → its weight tensors, and the way between these and one flat vector (n_i,) per block.

    Args:
        parameters: block name → the weights W_i of that block.
    """

    def __init__(self, parameters: Mapping[str, Sequence[Tensor]]) -> None:
        self._parameters = {name: list(weights) for name, weights in parameters.items()}
        self.all = [weight for block in self._parameters.values() for weight in block]
        """The weights of all blocks, one block after the other."""

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks, in the order they were given."""
        return tuple(self._parameters)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.all[0].device

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector over all weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.all)

    def of(self, name: str) -> list[Tensor]:
        """The weights of one block. Raises KeyError for an unknown name."""
        return self._parameters[name]

    def count(self, name: str) -> int:
        """n_i, the number of weights of one block."""
        return sum(weight.numel() for weight in self.of(name))

    def zeros(self) -> dict[str, Tensor]:
        """A vector of zeros (n_i,) per block."""
        return {
            name: torch.cat([torch.zeros_like(weight).reshape(-1) for weight in weights])
            for name, weights in self._parameters.items()
        }

    def random(self, name: str, generator: torch.Generator) -> Tensor:
        """A standard normal vector (n_i,) for one block, drawn on the CPU, so equal on every device."""
        first = self.of(name)[0]
        return torch.randn(self.count(name), generator=generator, dtype=first.dtype).to(first.device)

    def by_block(self, values: Sequence[Tensor]) -> dict[str, Sequence[Tensor]]:
        """One entry per weight, in the order of `all`, grouped by block."""
        ends = list(accumulate(len(block) for block in self._parameters.values()))
        return {
            name: values[end - len(block) : end]
            for (name, block), end in zip(self._parameters.items(), ends, strict=True)
        }

    def parts(self, name: str, vector: Tensor) -> list[Tensor]:
        """A flat vector (n_i,) in the shapes of the block's weights."""
        weights = self.of(name)
        pieces = vector.split([weight.numel() for weight in weights])
        return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]

    def slopes(self, value: Tensor, *, retain: bool) -> dict[str, Tensor]:
        """∂value/∂W_i of every block, each (n_i,) flat; `retain` keeps the graph of `value` (a scalar)."""
        rows = torch.autograd.grad(value, self.all, retain_graph=retain, allow_unused=True, materialize_grads=True)
        return {name: torch.cat([row.reshape(-1) for row in own]) for name, own in self.by_block(rows).items()}
