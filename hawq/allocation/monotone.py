"""The published orders: bits never rise from a more to a less sensitive block; least Σ Ω within a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawq.allocation.allocator import CANDIDATES, check_activation_bits, check_bit_widths, check_weighting, make_plan
from hawq.allocation.limits import SIZE_UNITS, check_limit, make_limits
from hawq.allocation.problem import Group, Problem, make_groups
from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.records import BitPlan, Block, Precision, Sensitivity

ORDERS = ("descending", "ascending", "random")


@component("bits/monotone")
@dataclass(frozen=True)
class Monotone:
    """HAWQ (1905.03696) and HAWQ-V2 (1911.03852): bits never increase along falling sensitivity, and among those
    assignments within the size limit the one with the least Σ Ω_i(b_i) is taken, by dynamic programming.

    With weighting="eigenvalue" the order is S_i = λ_i / n_i and Ω_i = λ_i ‖Q(W_i) − W_i‖²₂ (HAWQ, where the bits
    themselves were chosen by hand); with "trace" both use Tr(H_i) / n_i (HAWQ-V2, its point on the Pareto front).

    Args:
        target: the size limit in `unit`.
        unit: "w_comp" (compression of the weights, at least), "average_bits" or "bytes" of the packed file (at most).
        candidates: bit-widths to choose from, 1 … 8; a block with fixed bits is not part of the order.
        activations: bit-width of all activations, 32 for float.
        weighting: "eigenvalue", "trace", "proxy", "none" or "auto", as in `IntegerProgram`.
        order: "descending" as published, "ascending" (the ablation "HAWQ-Reverse-Precision") or "random".
        seed: of the random order.

    Raises:
        ValueError: a value out of range; `check` and `allocate`: a limit that cannot be met, with the feasible range.
    """

    target: float = 13.1
    unit: str = "w_comp"
    candidates: tuple[int, ...] = CANDIDATES
    activations: int = 4
    weighting: str = "eigenvalue"
    order: str = "descending"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, SIZE_UNITS)
        check_limit("target", self.unit, self.target)
        check_bit_widths("candidates", self.candidates)
        check_activation_bits(self.activations)
        check_weighting(self.weighting)
        check_choice("order", self.order, ORDERS)
        check_range("seed", self.seed, least=0, most=2**63 - 1)

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError, with the feasible range, when no plan for `blocks` can meet the limit."""
        self.problem(blocks, overhead_bytes).check()

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The best plan in this order. Raises ValueError when the limit cannot be met, or the analysis lacks data."""
        problem = self.problem(sensitivity.blocks, sensitivity.overhead_bytes)
        problem.check()
        rows = {row.block.name: row for row in sensitivity.rows}
        weighting = sensitivity.weighting(self.weighting)
        choices = problem.choices(lambda block, precision: rows[block.name].omega(precision.weight_bits, weighting))
        members = choices.members()
        free = [index for index in self._ordered(problem.groups, sensitivity) if len(members[index]) > 1]
        chosen = choices.starts().copy()  # right for the fixed ones
        if free:
            room = choices.limits[0] * (1 + 1e-12) - sum(
                choices.costs[0, members[index][0]] for index in range(len(members)) if index not in free
            )
            options = np.array([members[index][::-1] for index in free])  # (blocks, options), most bits first
            found = least_falling(choices.costs[0, options], choices.scores[options], float(room))
            chosen[free] = options[np.arange(len(free)), found]
        plan = problem.plan_at(chosen)
        version = "HAWQ-V2" if weighting == "trace" else "HAWQ-V1"
        method = {"descending": version, "ascending": f"{version} reversed", "random": f"{version} random order"}
        return make_plan(sensitivity, plan, method[self.order], weighting=weighting, gap=0.0, limits=problem.uses(plan))

    def problem(self, blocks: Sequence[Block], overhead_bytes: int | None) -> Problem:
        """The options of these blocks and the limit on them. Raises UserError for tied blocks without common bits."""
        bit_widths = {b.name: sorted(set(self.candidates)) if b.fixed_bits is None else [b.fixed_bits] for b in blocks}
        options = {name: [Precision(bits, self.activations) for bits in given] for name, given in bit_widths.items()}
        limits = make_limits({"target": (self.unit, self.target)}, blocks, overhead_bytes, None)
        return Problem(make_groups(blocks, options), limits)

    def _ordered(self, groups: Sequence[Group], sensitivity: Sensitivity) -> list[int]:
        """Indices of the groups by mean sensitivity, in the order that bits fall (ties keep network order)."""
        if self.order == "random":
            return np.random.default_rng(self.seed).permutation(len(groups)).tolist()
        weighting = sensitivity.weighting(self.weighting)
        scores = [
            sum(sensitivity.row(block.name).score_by(weighting) * block.num_weights for block in group.blocks)
            / sum(block.num_weights for block in group.blocks)
            for group in groups
        ]
        ranked = sorted(range(len(groups)), key=lambda index: -scores[index])
        return ranked if self.order == "descending" else ranked[::-1]


def least_falling(sizes: np.ndarray, scores: np.ndarray, room: float) -> np.ndarray:
    """(blocks,) columns that never go left, Σ sizes ≤ room, with the least Σ scores.

    Args:
        sizes, scores: (blocks, options), each row with the most bits first, and blocks in the order in which bits fall.
        room: largest allowed Σ sizes, at least that of the last column.

    For each prefix of the blocks and each option of its last one only the Pareto front of (size, score) is kept, so
    that no list of assignments is ever made.
    """
    still = sizes.min(1)[::-1].cumsum()[::-1] - sizes.min(1)  # least size of the blocks to come
    fronts = [(np.zeros(1), np.zeros(1))] + [(np.zeros(0), np.zeros(0))] * (sizes.shape[1] - 1)
    trails = []
    for block in range(len(sizes)):
        upto, trail = [], []
        front, came = (np.zeros(0), np.zeros(0)), np.zeros((2, 0), int)
        for column, (size, score) in enumerate(fronts):
            here = np.stack([np.full(len(size), column), np.arange(len(size))])
            both, came = (np.append(front[0], size), np.append(front[1], score)), np.hstack([came, here])
            keep = _pareto(*both)
            front, came = (both[0][keep], both[1][keep]), came[:, keep]
            fits = front[0] + sizes[block, column] + still[block] <= room
            upto.append((front[0][fits] + sizes[block, column], front[1][fits] + scores[block, column]))
            trail.append(came[:, fits])
        fronts = upto
        trails.append(trail)
    ends = [score.min() if len(score) else np.inf for _, score in fronts]
    column = int(np.argmin(ends))
    assert np.isfinite(ends[column]), "the least sizes do not fit"
    place, columns = int(fronts[column][1].argmin()), []
    for trail in reversed(trails):
        columns.append(column)
        column, place = map(int, trail[column][:, place])
    return np.array(columns[::-1])


def _pareto(sizes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of the points that no other one beats or equals in size and score, by size."""
    order = np.lexsort((scores, sizes))
    best = np.minimum.accumulate(np.append(np.inf, scores[order]))[:-1]
    return order[scores[order] < best]
