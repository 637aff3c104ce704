"""The contract of an allocator, and what all of them share: bit-widths, checks of settings, and making a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from hawq.checks import check_choice, check_range
from hawq.costs import plan_cost
from hawq.records import BIT_WIDTHS, FLOAT_BITS, WEIGHTINGS, BitPlan, Block, LimitUse, Precision, Sensitivity

CANDIDATES = BIT_WIDTHS[1:]  # the papers' bit-widths, the default candidates
MOST_SECONDS = 604_800  # a week


class Allocator(Protocol):
    """Decides the bits of every block."""

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, before any analysis, when no plan for `blocks` can meet the request.

        Args:
            blocks: of the network, in its order.
            overhead_bytes: what the packed file holds besides the codes.
        """
        ...

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The plan for the blocks of an analysis. Raises ValueError when no plan can meet the request."""
        ...


@runtime_checkable
class Weighted(Allocator, Protocol):
    """An allocator whose plan depends on the curvature: eigenvalue, trace, proxy or none of them, by `weighting`."""

    @property
    def weighting(self) -> str:
        """What weighs the errors, or "auto"."""
        ...


def check_bit_widths(name: str, bit_widths: Sequence[int]) -> None:
    """Raises ValueError for an empty list or a bit-width outside 1 … 8; `name` is the field's."""
    if not bit_widths or any(bits not in BIT_WIDTHS for bits in bit_widths):
        allowed = f"bit-widths from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
        raise ValueError(f"{name}={list(bit_widths)} is out of range: give {allowed}")


def check_bit_width(name: str, bits: int) -> None:
    """Raises ValueError for a bit-width outside 1 … 8; `name` is the field's."""
    check_range(name, bits, least=BIT_WIDTHS[0], most=BIT_WIDTHS[-1])


def check_activation_bits(bits: int) -> None:
    """Raises ValueError unless `bits` is 1 … 8, or 32 for float activations."""
    if bits not in (*BIT_WIDTHS, FLOAT_BITS):
        allowed = f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, or {FLOAT_BITS} for float"
        raise ValueError(f"activations={bits} is out of range: give {allowed}")


def check_solver_settings(weighting: str, gap: float, time_limit: float) -> None:
    """Raises ValueError for an unknown weighting, a gap outside 0 … 1, or a time limit of no seconds."""
    check_weighting(weighting)
    check_range("gap", gap, least=0, below=1)
    check_range("time_limit", time_limit, above=0, most=MOST_SECONDS)


def check_weighting(weighting: str) -> None:
    """Raises ValueError for an unknown weighting."""
    check_choice("weighting", weighting, ("auto", *WEIGHTINGS))


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
    """A plan in network order with its cost in each unit.

    Args:
        sensitivity: of the blocks.
        precisions: block name → bits.
        method: the plan's name in tables.
        weighting: what weighs the errors in the objective.
        objective: Σ Ω_i(b_i) of the weights unless given.
        gap: proven relative distance from the optimum; None where nothing was minimised.
        limits: how much of each limit the plan uses.

    Raises:
        KeyError: a block without a precision.
        UserError: a bit-width or weighting that the analysis lacks.
    """
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
