"""Mixed precision: the least predicted increase under any combination of limits, for weights and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hawq.allocation.allocator import check_evaluations, check_solver_settings
from hawq.allocation.plan_space import PlanSpace
from hawq.components import component
from hawq.records import BitPlan, Block, Precision, Sensitivity


@component("bits/integer_program")
@dataclass(frozen=True)
class IntegerProgram(PlanSpace):
    """The exact optimum: the least sum of predicted increases of the loss over one choice per block, by integer
    programming (HAWQ-V3, 2011.10680, with any score, bit-widths and limits).

    With activations="mixed" each block also chooses its activation bits, and their increases are added (HAWQ-V2, §3.5).
    Ties are broken by the plain error Σ ‖Q_b(W_i) − W_i‖²₂ (with that of the activations where they are mixed).

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
        score: what predicts the increases of the loss, one of `hawq.records.SCORES`: "eigenvalue" (HAWQ), "trace"
            (HAWQ-V2), "error" (the plain one), …, or "auto": the first of them that the analysis has found.
        gap: relative distance from the optimum to stop at, 0 for a proven optimum.
        time_limit: seconds after which the best plan so far is returned, with its proven gap.
        refine: plans that are measured at most to improve the optimum (`hawq.refine`), 0 for none. `allocate` alone
            measures nothing and returns the optimum.

    Raises:
        ValueError: a value out of range; `check` and `allocate`: limits that cannot be met, with the feasible ranges.
        FileNotFoundError: no file at `latency`.
    """

    score: str = "auto"
    gap: float = 0.0
    time_limit: float = 60.0
    refine: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver_settings(self.score, self.gap, self.time_limit)
        check_evaluations("refine", self.refine, least=0)

    @property
    def evaluations(self) -> int:
        """Plans that may be measured."""
        return self.refine

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, with the feasible ranges, when no plan for `blocks` can meet all limits."""
        self.problem(blocks, overhead_bytes).check(self.time_limit)

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The optimum. Raises ValueError when limits cannot be met, or the analysis lacks data."""
        name = sensitivity.score_name(self.score)

        def increase(score: str, block: Block, precision: Precision) -> float:
            bits = self.bits_by_kind(precision)
            return sum(sensitivity.predicted(score, block, kind, bits[kind]).value for kind in bits)

        problem = self.problem(sensitivity.blocks, sensitivity.overhead_bytes)
        return problem.optimum(sensitivity, increase, "HAWQ", name, self.gap, self.time_limit)
