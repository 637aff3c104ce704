"""The contract of an allocator, and the pieces that all of them share: widths, candidates and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from hawq.costs import plan_cost
from hawq.records import BIT_WIDTHS, FLOAT_BITS, WEIGHTINGS, BitPlan, Block, LimitUse, Precision, Sensitivity

CANDIDATES = BIT_WIDTHS[1:]  # the papers' widths, which are chosen from unless others are given


class Allocator(Protocol):
    """Decides the bits of every block."""

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, before any analysis, when no plan for `blocks` can meet the request."""
        ...

    def allocate(self, sensitivity: Sensitivity) -> BitPlan: ...


@runtime_checkable
class Weighted(Allocator, Protocol):
    """An allocator whose plan depends on the curvature: eigenvalue, trace, proxy or none of them, by `weighting`."""

    @property
    def weighting(self) -> str: ...


def check_bit_widths(key: str, bit_widths: Sequence[int]) -> None:
    """Raises ValueError for an empty list or a width outside 1 … 8."""
    wrong = [width for width in bit_widths if width not in BIT_WIDTHS]
    if wrong or not bit_widths:
        raise ValueError(
            f"{key}={list(bit_widths)} is out of range: give whole widths from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
        )


def check_activation_bits(bits: int) -> None:
    """Raises ValueError unless `bits` is 1 … 8, or 32 for float activations."""
    if bits not in (*BIT_WIDTHS, FLOAT_BITS):
        allowed = f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, or {FLOAT_BITS} for float"
        raise ValueError(f"bits.activations={bits} is out of range: give {allowed}")


def check_solver_settings(weighting: str, gap: float, time_limit: float) -> None:
    """Raises ValueError for an unknown weighting, a gap outside 0 … 1 or a time limit that is not positive."""
    check_weighting(weighting)
    if not 0 <= gap < 1:
        raise ValueError(f"bits.gap={gap} is out of range: give 0 for a proven optimum, or less than 1")
    if not time_limit > 0:
        raise ValueError(f"bits.time_limit={time_limit} is out of range: give seconds, more than 0")


def check_weighting(weighting: str) -> None:
    """Raises ValueError for an unknown weighting."""
    if weighting not in ("auto", *WEIGHTINGS):
        raise ValueError(f"bits.weighting={weighting!r} is unknown: give auto, {', '.join(WEIGHTINGS)}")


def make_plan(
    sensitivity: Sensitivity,
    precisions: Mapping[str, Precision],
    method: str,
    *,
    weighting: str = "eigenvalue",
    objective: float | None = None,
    gap: float | None = None,
    limits: tuple[LimitUse, ...] = (),
) -> BitPlan:
    """A plan in network order, its cost in every unit and its objective (Σ Ω_i(b_i) of the weights unless given)."""
    ordered = {block.name: precisions[block.name] for block in sensitivity.blocks}
    if objective is None:
        objective = sum(row.omega(ordered[row.block.name].weight_bits, weighting) for row in sensitivity.rows)
    return BitPlan(
        precisions=ordered,
        method=method,
        cost=plan_cost(sensitivity.blocks, ordered, sensitivity.overhead_bytes),
        objective=objective,
        gap=gap,
        weighting=weighting,
        limits=limits,
    )
