"""What a bit assignment costs: weights, MACs, BOPS, bytes, W-Comp, A-Comp (definitions of the HAWQ papers)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from hawq.records import FLOAT_BITS, IMAGE_BITS, Block, Cost, Precision

MIB = 2**20


def plan_cost(blocks: Sequence[Block], precisions: Mapping[str, Precision]) -> Cost:
    """Cost of a plan: W-Comp = 32·Σn_i / Σb_i n_i, A-Comp = 32 / mean activation bits, BOPS = Σ w_bits·a_bits·MACs.

    The mean over activations is weighted by elements; the input image is not an activation.
    Raises KeyError when a block has no precision.
    """
    total = sum(block.num_weights for block in blocks)
    bits = sum(block.num_weights * precisions[block.name].weight_bits for block in blocks)
    return Cost(
        num_weights=total,
        weight_bytes=ceil(bits / 8),
        average_bits=bits / total,
        w_comp=FLOAT_BITS * total / bits,
        a_comp=_a_comp(blocks, precisions),
        bops=_bops(blocks, precisions),
    )


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as stored in a float checkpoint."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def published_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of the file that PyTorch wrote of a state dict until 2020 (no zip): the papers' float "Size (MB)".

    Names count, and so do the versions of modules that `state_dict()` carries.
    """
    file = _CountingFile()
    torch.save(state, file, _use_new_zipfile_serialization=False)  # type: ignore[arg-type]
    return file.num_bytes


class _CountingFile(io.RawIOBase):
    """Takes what is written and keeps only its length."""

    num_bytes = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.num_bytes += length
        return length


def paper_size_mib(float_bytes: int, w_comp: float) -> float:
    """The papers' "Size (MB)": size of the float checkpoint in MiB, divided by W-Comp."""
    return float_bytes / MIB / w_comp


def _a_comp(blocks: Sequence[Block], precisions: Mapping[str, Precision]) -> float | None:
    counts = [block.num_activations for block in blocks]
    if any(count is None for count in counts):
        return None
    total = sum(block.num_activations or 0 for block in blocks)
    bits = sum((block.num_activations or 0) * precisions[block.name].activation_bits for block in blocks)
    return FLOAT_BITS * total / bits if bits else None


def _bops(blocks: Sequence[Block], precisions: Mapping[str, Precision]) -> int | None:
    if any(block.macs is None for block in blocks):
        return None
    return sum(
        (block.macs or 0) * precisions[block.name].weight_bits * _input_bits(block, precisions[block.name])
        for block in blocks
    )


def _input_bits(block: Block, precision: Precision) -> int:
    """A stem that reads only the image multiplies 8-bit inputs, unless the plan leaves activations float."""
    reads_image = set(block.image_layers) == set(block.layers)
    return IMAGE_BITS if reads_image and precision.activation_bits < FLOAT_BITS else precision.activation_bits
