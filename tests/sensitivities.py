"""Sensitivities and plans written down by hand, for tests that need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hawq.costs import plan_cost
from hawq.records import BitPlan, Block, BlockSensitivity, Estimate, Precision, Sensitivity

BIT_WIDTHS = range(2, 9)


def made_sensitivity(
    eigenvalues: Sequence[float],
    sizes: Sequence[int],
    errors: Sequence[Mapping[int, float]] | None = None,
    fixed_bits: Mapping[int, int] | None = None,
) -> Sensitivity:
    """Blocks b0, b1, … with given λ_i, n_i and ‖Q_b(W_i) − W_i‖² (4^−b unless given)."""
    rows = [
        BlockSensitivity(
            Block(f"b{i}", (f"b{i}.conv",), size, fixed_bits=(fixed_bits or {}).get(i)),
            Estimate(value, 0.0, 1, True),
            dict(errors[i]) if errors else {bits: 4.0**-bits for bits in BIT_WIDTHS},
        )
        for i, (value, size) in enumerate(zip(eigenvalues, sizes, strict=True))
    ]
    return Sensitivity(tuple(rows), "power", 1, 0.0)


def full_sensitivity(seed: int, num_blocks: int, overhead_bytes: int = 0) -> Sensitivity:
    """Blocks b0, b1, … with everything an analysis can know, in small whole numbers so that ties are frequent."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num_blocks):
        size, macs, activations = (int(rng.integers(1, 9)) for _ in range(3))
        falling = [np.sort(rng.integers(0, 7, len(BIT_WIDTHS)))[::-1] for _ in range(2)]
        rows.append(
            BlockSensitivity(
                Block(f"b{i}", (f"b{i}.conv",), size, 10 * macs, activations),
                Estimate(float(rng.integers(-1, 5)), 1.0, 1, True),
                {bits: float(error) for bits, error in zip(BIT_WIDTHS, falling[0], strict=True)},
                Estimate(float(size * rng.integers(-1, 5)), 1.0, 1, True),
                Estimate(float(activations * rng.integers(0, 4)), 1.0, 1, True),
                {bits: float(error) for bits, error in zip(BIT_WIDTHS, falling[1], strict=True)},
            )
        )
    return Sensitivity(tuple(rows), "power", 1, 0.0, overhead_bytes)


def random_sensitivity(seed: int, num_blocks: int, fixed_bits: Mapping[int, int] | None = None) -> Sensitivity:
    """λ over four decades, every third one negative; n from 1 to 500; errors that shrink with the width, unevenly."""
    rng = np.random.default_rng(seed)
    eigenvalues = 10 ** rng.uniform(-2, 2, num_blocks) * np.where(rng.random(num_blocks) < 0.15, -1, 1)
    sizes = rng.integers(1, 500, num_blocks)
    errors = [
        {bits: float(error) for bits, error in zip(BIT_WIDTHS, np.sort(rng.random(len(BIT_WIDTHS)))[::-1], strict=True)}
        for _ in range(num_blocks)
    ]
    return made_sensitivity(eigenvalues.tolist(), sizes.tolist(), errors, fixed_bits)


def plan_of(blocks: Sequence[Block], weight_bits: int | Sequence[int], activation_bits: int = 4) -> BitPlan:
    """A plan with the given widths, one for all blocks or one each."""
    bit_widths = [weight_bits] * len(blocks) if isinstance(weight_bits, int) else weight_bits
    precisions = {b.name: Precision(bits, activation_bits) for b, bits in zip(blocks, bit_widths, strict=True)}
    return BitPlan(precisions, "test", plan_cost(blocks, precisions))
