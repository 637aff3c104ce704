"""What a bit assignment costs: weights, MACs, BOPS, bytes, W-Comp, A-Comp (definitions of the HAWQ papers)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from hawq.records import FLOAT_BITS, IMAGE_BITS, Block, Cost, Precision

if TYPE_CHECKING:  # costs of plans are computed without PyTorch
    from torch import Tensor, nn

MIB = 2**20


def weight_bits(block: Block, precision: Precision) -> int:
    """Bits of the block's weight codes, b_i · n_i."""
    return block.num_weights * precision.weight_bits


def activation_bits(block: Block, precision: Precision) -> int:
    """Bits of the block's input activations for one sample: activation bits × elements entering its layers.

    Raises ValueError for a block that was not traced.
    """
    return _traced(block, "num_activations") * precision.activation_bits


def activation_bytes(block: Block, precision: Precision) -> float:
    """Bytes of the block's input activations for one sample. Raises ValueError for a block that was not traced."""
    return activation_bits(block, precision) / 8


def bops(block: Block, precision: Precision) -> int:
    """Bit operations for one sample: w_bits · a_bits · MACs.

    A stem that reads only the image multiplies 8-bit inputs, unless activations are float. Raises ValueError for a
    block that was not traced.
    """
    reads_image = set(block.image_layers) == set(block.layers)
    image = reads_image and precision.activation_bits < FLOAT_BITS
    return _traced(block, "macs") * precision.weight_bits * (IMAGE_BITS if image else precision.activation_bits)


def _traced(block: Block, field: str) -> int:
    count: int | None = getattr(block, field)
    if count is None:
        raise ValueError(f"block {block.name!r} has no {field}: trace the blocks with an example input first")
    return count


def plan_cost(blocks: Sequence[Block], precisions: Mapping[str, Precision], overhead_bytes: int | None = None) -> Cost:
    """Cost of a plan: W-Comp = 32·Σn_i / Σb_i n_i, A-Comp = 32 / mean activation bits, BOPS = Σ w_bits·a_bits·MACs.

    The mean over activations is weighted by elements; the input image is not an activation. The peak is that of the
    block with the most bytes of activations.

    Args:
        blocks: of the network; A-Comp, BOPS and the peak need traced ones and are None for others.
        precisions: block name → bits.
        overhead_bytes: what the packed file holds besides the codes; `packed_bytes` is None without it.

    Raises:
        KeyError: a block without a precision.
    """
    pairs = [(block, precisions[block.name]) for block in blocks]
    total = sum(block.num_weights for block in blocks)
    bits = sum(weight_bits(*pair) for pair in pairs)
    activations = None if any(b.num_activations is None for b in blocks) else sum(activation_bits(*p) for p in pairs)
    return Cost(
        num_weights=total,
        weight_bytes=ceil(bits / 8),
        average_bits=bits / total,
        w_comp=FLOAT_BITS * total / bits,
        a_comp=FLOAT_BITS * sum(block.num_activations or 0 for block in blocks) / activations if activations else None,
        bops=None if any(block.macs is None for block in blocks) else sum(bops(*pair) for pair in pairs),
        packed_bytes=None if overhead_bytes is None else overhead_bytes + ceil(bits / 8),
        peak_activation_bytes=None if activations is None else max(activation_bytes(*pair) for pair in pairs),
    )


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of the network, as stored in a float checkpoint."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def published_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of the file that PyTorch wrote for a state dict until 2020 (not zipped): the papers' float "Size (MB)".

    Names count, and so do the versions of modules that `state_dict()` carries.
    """
    import torch

    file = _CountingFile()
    torch.save(state, file, _use_new_zipfile_serialization=False)  # type: ignore[arg-type]
    return file.num_bytes


class _CountingFile(io.RawIOBase):
    """A file that keeps only the number of bytes written to it."""

    num_bytes = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.num_bytes += length
        return length


def paper_size_mib(float_bytes: int, w_comp: float) -> float:
    """The papers' "Size (MB)": the size of the float checkpoint in MiB, divided by W-Comp."""
    return float_bytes / MIB / w_comp
