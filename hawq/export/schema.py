"""What a packed file holds beside its tensors (layout in docs/formats.md)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from hawq.quantization import FakeQuantizer

PACKED_SCHEMA = "hawq.packed/2"


class FrozenQuantizer(FakeQuantizer):
    """A quantiser with a fixed grid, as read back from a file."""

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


def checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header without its checksum, keys sorted, and the bytes of all tensors, by name."""
    covered = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
