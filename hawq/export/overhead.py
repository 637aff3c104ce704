"""The size of a packed file before there is a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hawq.export.writer import Pool, pack_network
from hawq.layers import channel_axis
from hawq.quantization import (
    LSQ,
    FakeQuantizer,
    Quantizer,
    attach,
    input_quantizer,
    original_weight,
    weight_quantizer,
)
from hawq.quantization.residuals import RESIDUALS
from hawq.records import BIT_WIDTHS, BitPlan, Block, Cost, Precision

_LONGEST = -1.2345678901234567e-100  # no finite number has more digits
_OFFSETS = 64  # digits that offsets in the file gain when the codes stand there too, and padding


def packed_overhead(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer | None = None,
    about: dict[str, Any] | None = None,
) -> int:
    """Bytes that the packed file of `model` holds beside the ⌈Σ b_i n_i / 8⌉ bytes of its weights' codes.

    It counts scales, all other tensors, and the header. Unknown before there is a plan are only the digits of the
    header's numbers and the last byte of each layer's codes; both are taken at their longest, as are the codes of a
    weight that several layers share. So no saved file is larger than predicted; one with float activations is smaller
    by their missing steps.

    Args:
        model: the float network; left unchanged.
        blocks: from `find_blocks`, traced with an example.
        quantizer: LSQ unless given.
        about: what `save` will be given.

    Raises:
        ValueError: as `attach` and `save` do.
    """
    cost = Cost(10**9, 10**9, _LONGEST, _LONGEST, _LONGEST, 10**13, 10**9, _LONGEST)
    precisions = {block.name: Precision(BIT_WIDTHS[-1], BIT_WIDTHS[-1]) for block in blocks}
    plan = BitPlan(precisions, "-" * 24, cost, _LONGEST, _LONGEST)
    network = attach(model, blocks, plan, quantizer or LSQ())
    codes = []
    for layer in network.modules():
        weight, grid = weight_quantizer(layer), input_quantizer(layer)
        if weight is not None:
            original = original_weight(layer)
            weight.initialise(original if weight.keeps_large else _one_per_channel(original, channel_axis(layer)))
            codes.append(original.numel())
        if grid is not None:
            ends = torch.linspace(-1, 1, 2, dtype=original_weight(layer).dtype, device=original_weight(layer).device)
            grid.initialise(ends)
    for grid in getattr(network, RESIDUALS, {}).values():
        grid.initialise(torch.linspace(-1, 1, 2, device=next(model.parameters()).device))
    stored_twice = sum(codes) - sum(block.num_weights for block in blocks)
    rest = len(pack_network(network, about or {}, _PoolWithoutCodes()))
    return rest + _OFFSETS + stored_twice + sum(n % 8 > 0 for n in codes)


def _one_per_channel(weight: Tensor, axis: int) -> Tensor:
    """One value for each channel, in the place where the weight has it: its grid has as many scales."""
    shape = [1] * weight.dim()
    shape[axis] = weight.shape[axis]
    return weight.movedim(axis, 0).flatten(1)[:, 0].reshape(shape)


class _PoolWithoutCodes(Pool):
    """All but the codes, to measure the rest."""

    def _add_codes(self, weight: Tensor, quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
        self._add("codes", torch.zeros(0, dtype=torch.uint8))
        scale, low, _ = quantizer.grid(weight)
        return scale, low
