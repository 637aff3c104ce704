"""Integers of b bits, packed without gaps."""

from __future__ import annotations

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """N unsigned integers 0 … 2^b−1, any shape → uint8 (⌈N·b/8⌉,), least significant bit first.

    Raises ValueError for an integer that needs more than `bits` bits (1 to 8).
    """
    flat = codes.reshape(-1).astype(np.uint8)
    if flat.size and int(flat.max()) >= 2**bits:
        raise ValueError(f"code {int(flat.max())} does not fit in {bits} bits")
    planes = (flat[:, None] >> np.arange(bits, dtype=np.uint8)) & 1  # (N, b)
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` integers that `pack` stored: uint8 (count,). Raises ValueError if there are fewer."""
    if packed.size * 8 < count * bits:
        raise ValueError(f"{packed.size} bytes hold fewer than {count} integers of {bits} bits")
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
