"""Which plans are allowed: bit-widths, tied blocks and limits; shared by everything that chooses among such plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from hawq.allocation.allocator import (
    BIT_WIDTHS,
    CANDIDATES,
    check_activation_bits,
    check_bit_widths,
    check_mapping,
    check_names,
)
from hawq.allocation.latency import read_latency
from hawq.allocation.limits import check_limit, make_limits
from hawq.allocation.problem import Problem, make_groups
from hawq.errors import UserError
from hawq.records import ACTIVATIONS, WEIGHTS, Block, Precision


@dataclass(frozen=True)
class PlanSpace:
    """All plans that meet every limit at once.

    Args:
        target: the main limit, in `unit`.
        unit: "w_comp" or "a_comp" (compressions, at least), "average_bits" or "activation_bits" (means, at most),
            "uniform_bits" (as many weight bits in all as the uniform network has at so many, its ends at 8),
            "bytes" (packed file), "bops", "peak_activation_bytes" (block with the most) or "latency_ms" (at most).
        limits: further limits by unit; None is no limit.
        candidates: bit-widths to choose from, 1 … 8.
        overrides: candidates of single blocks, by name; a single one fixes the block.
        tied: lists of blocks that share their bits.
        activations: bit-width of all activations, 32 for float, or "mixed".
        activation_candidates: bit-widths to choose from when activations are mixed.
        latency: table of milliseconds, .json or .csv, for a limit on latency.

    Raises:
        ValueError: a value out of range; `check`: limits that cannot be met, with the feasible ranges.
        FileNotFoundError: no file at `latency`.
    """

    target: float = 10.6
    unit: str = "w_comp"
    limits: dict[str, float | None] = field(default_factory=dict)
    candidates: tuple[int, ...] = CANDIDATES
    overrides: dict[str, list[int]] = field(default_factory=dict)
    tied: tuple[list[str], ...] = ()
    activations: int | str = 4
    activation_candidates: tuple[int, ...] = CANDIDATES
    latency: str | None = None

    def __post_init__(self) -> None:
        check_mapping("limits", self.limits, "number")
        check_mapping("overrides", self.overrides, "[bits, ...]")
        check_names("tied", self.tied)
        for key, (unit, target) in self._targets().items():
            check_limit(key, unit, target)
        check_bit_widths("candidates", self.candidates)
        for name, bit_widths in self.overrides.items():
            check_bit_widths(f"overrides.{name}", bit_widths)
        if self.activations == "mixed":
            check_bit_widths("activation_candidates", self.activation_candidates)
        elif isinstance(self.activations, str):
            allowed = f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, 32 for float, or mixed"
            raise ValueError(f"activations={self.activations!r} is unknown: give {allowed}")
        else:
            check_activation_bits(self.activations)
        if self.latency is not None:
            read_latency(Path(self.latency))

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, with the feasible ranges, when no plan for `blocks` can meet all limits."""
        self.problem(blocks, overhead_bytes).check()

    def bits_by_kind(self, precision: Precision) -> dict[str, int]:
        """What the plan decides: kind → bits, of the weights, and of the activations where these are mixed."""
        mixed = {ACTIVATIONS: precision.activation_bits} if self.activations == "mixed" else {}
        return {WEIGHTS: precision.weight_bits, **mixed}

    def problem(self, blocks: Sequence[Block], overhead_bytes: int | None) -> Problem:
        """The options of these blocks and the limits on them. Raises UserError for names that no block has."""
        unknown = sorted(self.overrides.keys() - {block.name for block in blocks})
        if unknown:
            names = [block.name for block in blocks]
            raise UserError(f"overrides names unknown blocks {unknown}: the blocks are {names}")
        table = read_latency(Path(self.latency)) if self.latency else None
        options = {block.name: self._options(block) for block in blocks}
        limits = make_limits(self._targets(), blocks, overhead_bytes, table)
        return Problem(make_groups(blocks, options, self.tied), limits)

    def _options(self, block: Block) -> list[Precision]:
        fixed = self.candidates if block.fixed_bits is None else (block.fixed_bits,)
        weights = self.overrides.get(block.name, fixed)
        activations = self.activation_candidates if isinstance(self.activations, str) else (self.activations,)
        if block.num_activations == 0:  # reads the image alone: its activation bits mean nothing
            activations = (max(activations),)
        return [Precision(*bits) for bits in product(weights, activations)]

    def _targets(self) -> Mapping[str, tuple[str, float]]:
        """{field: (unit, target)} of all limits."""
        further = {f"limits.{unit}": (unit, goal) for unit, goal in self.limits.items() if goal is not None}
        return {"target": (self.unit, self.target), **further}
