"""The published orders: bits never rise from a more to a less sensitive block; least Σ Ω within a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawq.allocation.allocator import CANDIDATES, check_activation_bits, check_bit_widths, check_score, make_plan
from hawq.allocation.choices import TOLERANCE
from hawq.allocation.falling import Falling
from hawq.allocation.limits import SIZE_UNITS, check_limit, make_limits
from hawq.allocation.problem import Group, Problem, make_groups
from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.records import WEIGHTS, BitPlan, Block, Precision, Sensitivity

ORDERS = ("descending", "ascending", "random")


@component("bits/monotone")
@dataclass(frozen=True)
class Monotone:
    """HAWQ (1905.03696) and HAWQ-V2 (1911.03852): bits never increase along falling sensitivity, and among those
    assignments within the size limit the one with the least Σ Ω_i(b_i) is taken, by dynamic programming.

    Ties are broken by the plain error Σ ‖Q_b(W_i) − W_i‖²₂; blocks of equal sensitivity are free of each other.

    With score="eigenvalue" the order is S_i = λ_i / n_i and Ω_i = λ_i ‖Q(W_i) − W_i‖²₂ (HAWQ, where the bits
    themselves were chosen by hand); with "trace" both use Tr(H_i) / n_i (HAWQ-V2, its point on the Pareto front).

    Args:
        target: the size limit in `unit`.
        unit: "w_comp" (compression of the weights, at least), "average_bits", "uniform_bits" or "bytes" of the packed
            file (at most).
        candidates: bit-widths to choose from, 1 … 8; a block with fixed bits is not part of the order.
        activations: bit-width of all activations, 32 for float.
        score: "eigenvalue", "trace" or any other of `IntegerProgram`; it also ranks the blocks.
        order: "descending" as published, "ascending" (the ablation "HAWQ-Reverse-Precision") or "random".
        seed: of the random order.

    Raises:
        ValueError: a value out of range; `check` and `allocate`: a limit that cannot be met, with the feasible range.
    """

    target: float = 13.1
    unit: str = "w_comp"
    candidates: tuple[int, ...] = CANDIDATES
    activations: int = 4
    score: str = "eigenvalue"
    order: str = "descending"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, SIZE_UNITS)
        check_limit("target", self.unit, self.target)
        check_bit_widths("candidates", self.candidates)
        check_activation_bits(self.activations)
        check_score(self.score)
        check_choice("order", self.order, ORDERS)
        check_range("seed", self.seed, least=0, most=2**63 - 1)

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, with the feasible range, when no plan for `blocks` can meet the limit."""
        self.problem(blocks, overhead_bytes).check()

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The best plan in this order. Raises ValueError when the limit cannot be met, or the analysis lacks data."""
        problem = self.problem(sensitivity.blocks, sensitivity.overhead_bytes)
        problem.check()
        name = sensitivity.score_name(self.score)

        def increase(score: str, block: Block, precision: Precision) -> float:
            return sensitivity.predicted(score, block, WEIGHTS, precision.weight_bits).value

        choices = problem.scored(increase, name)
        members = choices.members()
        order, levels = self._ordered(problem.groups, sensitivity)
        free = [place for place, index in enumerate(order) if len(members[index]) > 1]
        chosen = choices.starts().copy()  # right for the fixed ones
        if free:
            groups = order[free]
            fixed = [members[index][0] for index in range(len(members)) if index not in groups]
            step = 1 if self.order == "ascending" else -1  # along falling sensitivity bits never fall, or never rise
            options = np.array([members[index][::step] for index in groups])  # (blocks, options)
            room = choices.limits[0] * (1 + TOLERANCE) - choices.costs[0, fixed].sum()
            seconds = choices.scores if choices.seconds is None else choices.seconds
            arrays = choices.costs[0, options], choices.scores[options], seconds[options]
            found = Falling(*arrays, levels[free], float(room)).solve()
            chosen[groups] = options[np.arange(len(groups)), found]
        plan = problem.plan_at(chosen)
        version = "HAWQ-V2" if name == "trace" else "HAWQ-V1"
        method = {"descending": version, "ascending": f"{version} reversed", "random": f"{version} random order"}
        return make_plan(sensitivity, plan, method[self.order], score=name, gap=0.0, limits=problem.uses(plan))

    def problem(self, blocks: Sequence[Block], overhead_bytes: int | None) -> Problem:
        """The options of these blocks and the limit on them. Raises UserError for tied blocks without common bits."""
        bit_widths = {b.name: sorted(set(self.candidates)) if b.fixed_bits is None else [b.fixed_bits] for b in blocks}
        options = {name: [Precision(bits, self.activations) for bits in given] for name, given in bit_widths.items()}
        limits = make_limits({"target": (self.unit, self.target)}, blocks, overhead_bytes, None)
        return Problem(make_groups(blocks, options), limits)

    def _ordered(self, groups: Sequence[Group], sensitivity: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
        """(groups,) indices of the groups along falling mean sensitivity, or at random; and their levels.

        Groups of equal sensitivity share a level: none of them need have as many bits as the other.
        """
        if self.order == "random":
            return np.random.default_rng(self.seed).permutation(len(groups)), np.arange(len(groups))
        name = sensitivity.score_name(self.score)
        ranks = np.array(
            [
                sum(sensitivity.rank(name, block) * block.num_weights for block in group.blocks)
                / sum(block.num_weights for block in group.blocks)
                for group in groups
            ]
        )
        order = np.argsort(-ranks, kind="stable")
        return order, np.append(0, (np.diff(ranks[order]) < 0).cumsum())
