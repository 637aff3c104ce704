"""The contract of an allocator, and what all of them share: bit-widths, checks of settings, and making a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from hawq.checks import check_choice, check_range
from hawq.costs import plan_cost
from hawq.records import (
    BIT_WIDTHS,
    FLOAT_BITS,
    SCORES,
    WEIGHTS,
    BitPlan,
    Block,
    LimitUse,
    Precision,
    Sensitivity,
    parts_of,
)

CANDIDATES = BIT_WIDTHS[1:]  # the papers' bit-widths, the default candidates
MOST_SECONDS = 604_800  # a week
_MOST_EVALUATIONS = 1_000_000


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
class Scored(Allocator, Protocol):
    """An allocator whose plan depends on a score of the analysis, by its name."""

    @property
    def score(self) -> str:
        """One of `hawq.records.SCORES`, several joined by "+" for their geometric mean, or "auto"."""
        ...


@runtime_checkable
class Measuring(Allocator, Protocol):
    """An allocator that may measure whole plans, which needs the network and data (`hawq.search`)."""

    @property
    def evaluations(self) -> int:
        """Plans that it may measure; 0 where it measures none, and then its plan follows from the analysis alone."""
        ...


def measures_plans(allocator: Allocator) -> bool:
    """Whether an allocator needs more than an analysis: the network and data, to measure plans."""
    return isinstance(allocator, Measuring) and allocator.evaluations > 0


def check_evaluations(name: str, evaluations: int, *, least: int) -> None:
    """Raises ValueError for a number of measured plans out of range; `name` is the field's."""
    check_range(name, evaluations, least=least, most=_MOST_EVALUATIONS)


def check_bit_widths(name: str, bit_widths: Sequence[int]) -> None:
    """Raises ValueError for anything but a list of bit-widths in 1 … 8, at least one; `name` is the field's."""
    listed = isinstance(bit_widths, (list, tuple))
    if not listed or not bit_widths or not all(_is_one_of(bits, BIT_WIDTHS) for bits in bit_widths):
        shown = list(bit_widths) if listed else repr(bit_widths)
        allowed = f"bit-widths from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
        raise ValueError(f"{name}={shown} is out of range: give a list of {allowed}")


def check_bit_width(name: str, bits: int) -> None:
    """Raises ValueError for a bit-width outside 1 … 8; `name` is the field's."""
    if not _is_one_of(bits, BIT_WIDTHS):
        raise ValueError(f"{name}={bits!r} is out of range: give {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}")


def check_activation_bits(bits: int) -> None:
    """Raises ValueError unless `bits` is 1 … 8, or 32 for float activations."""
    if not _is_one_of(bits, (*BIT_WIDTHS, FLOAT_BITS)):
        allowed = f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, or {FLOAT_BITS} for float"
        raise ValueError(f"activations={bits!r} is out of range: give {allowed}")


def _is_one_of(value: object, allowed: Sequence[int]) -> bool:
    """Whether a value is a whole number among `allowed`; True and 4.0 are not 1 and 4."""
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def check_names(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a list of lists of block names; `name` is the field's."""
    shaped = isinstance(value, (list, tuple)) and all(
        isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names) for names in value
    )
    if not shaped:
        raise ValueError(f"{name}={value!r} has the wrong shape: give lists of block names, say [[a, b], [c, d]]")


def check_mapping(name: str, value: object, inside: str) -> None:
    """Raises ValueError unless `value` maps names; `inside` says to what, `name` is the field's."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={value!r} has the wrong shape: give {{name: {inside}, ...}}")


def check_solver_settings(score: str, gap: float, time_limit: float) -> None:
    """Raises ValueError for an unknown score, a gap outside 0 … 1, or a time limit of no seconds."""
    check_score(score)
    check_range("gap", gap, least=0, below=1)
    check_range("time_limit", time_limit, above=0, most=MOST_SECONDS)


def check_score(score: str) -> None:
    """Raises ValueError for an unknown score; "none" is what "error" was called, "kl+trace" a geometric mean."""
    parts = parts_of(score) if isinstance(score, str) else (score,)
    if len(parts) > 1:
        if not set(parts) <= set(SCORES) or len(set(parts)) < len(parts):
            raise ValueError(f"score={score} is out of range: join some of {', '.join(SCORES)} by +, none twice")
    elif score != "none":
        check_choice("score", score, ("auto", *SCORES))


def make_plan(
    sensitivity: Sensitivity,
    precisions: Mapping[str, Precision],
    method: str,
    *,
    score: str,
    objective: float | None = None,
    gap: float | None = None,
    limits: tuple[LimitUse, ...] = (),
) -> BitPlan:
    """A plan in network order with its cost in each unit.

    Args:
        sensitivity: of the blocks.
        precisions: block name → bits.
        method: the plan's name in tables.
        score: that predicts the objective.
        objective: Σ of the increases that it predicts for the weights unless given.
        gap: proven relative distance from the optimum; None where nothing was minimised.
        limits: how much of each limit the plan uses.

    Raises:
        KeyError: a block without a precision.
        UserError: a bit-width that was not analysed.
    """
    ordered = {block.name: precisions[block.name] for block in sensitivity.blocks}
    if objective is None:
        pairs = [(block, ordered[block.name].weight_bits) for block in sensitivity.blocks]
        objective = sum(sensitivity.predicted(score, block, WEIGHTS, bits).value for block, bits in pairs)
    return BitPlan(
        precisions=ordered,
        method=method,
        cost=plan_cost(sensitivity.blocks, ordered, sensitivity.overhead_bytes),
        objective=objective,
        gap=gap,
        weighting=score,
        limits=limits,
    )
