"""The contract of an allocator, and the pieces that all of them share: widths, plans and the size limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hawq.costs import plan_cost
from hawq.records import FLOAT_BITS, BitPlan, Block, Precision, Sensitivity

WIDTHS = tuple(range(2, 9))
UNITS = ("w_comp", "average_bits", "bytes")


class Allocator(Protocol):
    """Decides the bits of every block."""

    def check(self, blocks: Sequence[Block]) -> None:
        """Raises ValueError, before any analysis, when no plan for `blocks` can meet the request."""
        ...

    def allocate(self, sensitivity: Sensitivity) -> BitPlan: ...


@dataclass(frozen=True)
class SizeLimit:
    """A limit on the weight bits Σ b_i n_i, given as W-Comp (at least), average bits or bytes (at most).

    Raises:
        ValueError: an unknown unit, or a target that is not positive.
    """

    target: float
    unit: str = "w_comp"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"bits.unit={self.unit!r} is unknown: give {', '.join(UNITS)}")
        if not self.target > 0:
            raise ValueError(f"bits.target={self.target} is out of range: give a positive number ({self.unit})")

    def total_bits(self, num_weights: int) -> float:
        """The largest allowed Σ b_i n_i for a network with `num_weights` weights."""
        if self.unit == "w_comp":
            return FLOAT_BITS * num_weights / self.target
        return self.target * num_weights if self.unit == "average_bits" else self.target * 8

    def in_unit(self, bits: float, num_weights: int) -> float:
        """`bits` = Σ b_i n_i expressed in this limit's unit."""
        if self.unit == "w_comp":
            return FLOAT_BITS * num_weights / bits
        return bits / num_weights if self.unit == "average_bits" else bits / 8

    def check(self, blocks: Sequence[Block], candidates: Mapping[str, Sequence[int]]) -> None:
        """Raises ValueError stating the feasible range when even the narrowest widths break the limit."""
        total = sum(block.num_weights for block in blocks)
        least = sum(block.num_weights * min(candidates[block.name]) for block in blocks)
        most = sum(block.num_weights * max(candidates[block.name]) for block in blocks)
        if least > self.total_bits(total):
            ends = sorted((self.in_unit(least, total), self.in_unit(most, total)))
            raise ValueError(
                f"bits.target={self.target:g} ({self.unit}) cannot be met: with the given candidate widths this "
                f"network reaches {ends[0]:.6g} to {ends[1]:.6g} {self.unit}; give a target in that range"
            )


def check_widths(key: str, widths: Sequence[int]) -> None:
    """Raises ValueError for an empty list or a width outside 2 … 8."""
    wrong = [width for width in widths if width not in WIDTHS]
    if wrong or not widths:
        raise ValueError(f"{key}={list(widths)} is out of range: give whole widths from {WIDTHS[0]} to {WIDTHS[-1]}")


def check_activation_bits(bits: int) -> None:
    """Raises ValueError unless `bits` is 2 … 8, or 32 for float activations."""
    if bits not in (*WIDTHS, FLOAT_BITS):
        raise ValueError(f"bits.activations={bits} is out of range: give 2 to 8, or {FLOAT_BITS} for float")


def candidates_for(blocks: Sequence[Block], widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Allowed widths of each block: its fixed width where it has one, else `widths`."""
    return {
        block.name: (block.fixed_bits,) if block.fixed_bits is not None else tuple(sorted(set(widths)))
        for block in blocks
    }


def make_plan(
    sensitivity: Sensitivity,
    weight_bits: Mapping[str, int],
    activation_bits: int | Mapping[str, int],
    method: str,
    gap: float | None = None,
) -> BitPlan:
    """A plan with its cost in every unit and its objective Σ Ω_i(b_i), in network order."""
    names = [block.name for block in sensitivity.blocks]
    if isinstance(activation_bits, int):
        activation_bits = dict.fromkeys(names, activation_bits)
    precisions = {name: Precision(weight_bits[name], activation_bits[name]) for name in names}
    return BitPlan(
        precisions=precisions,
        method=method,
        cost=plan_cost(sensitivity.blocks, precisions),
        objective=sum(row.omega(weight_bits[row.block.name]) for row in sensitivity.rows),
        gap=gap,
    )
