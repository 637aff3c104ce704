"""HAWQ-V3's integer program: one limit, between the costs of all blocks at the smaller and at the larger bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hawq.allocation.allocator import check_bit_width, check_bit_widths, check_solver_settings
from hawq.allocation.latency import read_latency
from hawq.allocation.limits import make_limits
from hawq.allocation.problem import Problem, make_groups
from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.records import WEIGHTS, BitPlan, Block, Precision, Sensitivity

UNITS = ("bytes", "bops", "latency_ms")


@component("bits/hawq_v3")
@dataclass(frozen=True)
class HawqV3:
    """min Σ_i Tr(H_i)/n_i · ‖Q_b(W_i) − W_i‖²₂ s.t. cost ≤ cost_4 + α (cost_8 − cost_4) (HAWQ-V3, 2011.10680).

    Ties are broken by the plain error Σ ‖Q_b(W_i) − W_i‖²₂.

    A block's weights and activations share their bit-width. The first and the last block are apart, at `ends` bits.

    Args:
        level: α, 0 … 1; the paper's low, medium and high are 0.25, 0.5 and 0.75.
        unit: what is limited: "bytes", "bops" or "latency_ms".
        bit_widths: the smaller and the larger one, 1 … 8.
        ends: bit-width of the first and the last block; None treats them like the others.
        score: "trace" as published, or any other of `IntegerProgram`.
        latency: table of milliseconds, .json or .csv, for unit="latency_ms".
        gap, time_limit: as in `IntegerProgram`.

    Raises:
        ValueError: a value out of range; `check` and `allocate`: a unit for which the blocks lack what it needs.
        FileNotFoundError: no file at `latency`.
    """

    level: float = 0.5
    unit: str = "bops"
    bit_widths: tuple[int, ...] = (4, 8)
    ends: int | None = 8
    score: str = "trace"
    latency: str | None = None
    gap: float = 0.0
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        check_range("level", self.level, least=0, most=1)
        check_choice("unit", self.unit, UNITS)
        check_bit_widths("bit_widths", self.bit_widths)
        if len(self.bit_widths) != 2 or self.bit_widths[0] >= self.bit_widths[1]:
            raise ValueError(f"bit_widths={list(self.bit_widths)} is out of range: give a smaller and a larger one")
        if self.ends is not None:
            check_bit_width("ends", self.ends)
        check_solver_settings(self.score, self.gap, self.time_limit)
        if self.latency is not None:
            read_latency(Path(self.latency))

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError when no plan for `blocks` can stay within the limit."""
        self._problem(blocks, overhead_bytes).check(self.time_limit)

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The optimum. Raises ValueError when the limit cannot be met, or the analysis lacks data."""
        name = sensitivity.score_name(self.score)

        def increase(score: str, block: Block, precision: Precision) -> float:
            return sensitivity.predicted(score, block, WEIGHTS, precision.weight_bits).value

        problem = self._problem(sensitivity.blocks, sensitivity.overhead_bytes)
        return problem.optimum(sensitivity, increase, "HAWQ-V3", name, self.gap, self.time_limit)

    def _problem(self, blocks: Sequence[Block], overhead_bytes: int | None) -> Problem:
        table = read_latency(Path(self.latency)) if self.latency else None
        groups = make_groups(blocks, {block.name: self._options(block, blocks) for block in blocks})
        (limit,) = make_limits({"level": (self.unit, 1.0)}, blocks, overhead_bytes, table)
        least, most = Problem(groups, ()).reach(limit)
        return Problem(groups, (replace(limit, target=limit.value(least + self.level * (most - least))),))

    def _options(self, block: Block, blocks: Sequence[Block]) -> list[Precision]:
        at_end = self.ends is not None and block.name in (blocks[0].name, blocks[-1].name)
        fixed = block.fixed_bits or (self.ends if at_end else None)
        return [Precision(bits, bits) for bits in ((fixed,) if fixed else self.bit_widths)]
