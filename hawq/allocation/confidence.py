"""Whether a plan holds within the errors of the score from which it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hawq.allocation.allocator import Scored
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.solver import minimise
from hawq.checks import check_range
from hawq.records import BitPlan, Block, Confidence, Precision, Prediction, Sensitivity

MOST_DRAWS = 10_000


def confidence(
    sensitivity: Sensitivity, allocator: Scored, plan: BitPlan, draws: int, seed: int = 0
) -> Confidence | None:
    """The plan recomputed `draws` times, each measured number moved to value + error or value − error at random.

    Args:
        sensitivity: that the plan was made from.
        allocator: that made the plan.
        plan: to examine.
        draws: number of recomputed plans, 1 … 10,000.
        seed: of the random signs.

    Returns:
        None where no error is stated, as in files made from published numbers.

    Raises:
        ValueError: `draws` out of range, or what `allocator.allocate` raises.
    """
    check_range("draws", draws, least=1, most=MOST_DRAWS)
    table = sensitivity.table(sensitivity.score_name(allocator.score))
    if not any(one.error for row in table.weights.values() for one in row.values()):
        return None
    rng = np.random.default_rng(seed)

    def coin() -> int:
        return 1 if rng.random() < 0.5 else -1

    others = tuple(one for one in sensitivity.scores if one.score != table.score)
    moved = (replace(sensitivity, scores=(table.moved(coin), *others)) for _ in range(draws))
    seen = [allocator.allocate(one).precisions for one in moved]
    changes = {
        name: dict(Counter(_label(other[name]) for other in seen).most_common())
        for name, bits in plan.precisions.items()
        if any(other[name] != bits for other in seen)
    }
    proven = is_proven(sensitivity, allocator, plan) if isinstance(allocator, IntegerProgram) and not changes else None
    return Confidence(draws, changes, proven)


def _label(precision: Precision) -> str:
    return f"{precision.weight_bits}/{precision.activation_bits}"


def is_proven(sensitivity: Sensitivity, allocator: IntegerProgram, plan: BitPlan) -> bool:
    """Whether no predictions within value ± error make another allowed plan better than `plan`.

    The largest regret, max over plans q of Σ_i max (Δ_i(p_i) − Δ_i(q_i)) over all increases Δ_i within their errors, is
    itself an allocation problem with the same choices and limits; the plan is proven when it is zero. Where the
    increases of a block are one measured factor times known numbers, all move together; else each moves alone. A
    negative one counts as 0. Raises UserError as `allocate` does.
    """
    score = sensitivity.score_name(allocator.score)
    together = sensitivity.table(score).one_factor
    problem = allocator.problem(sensitivity.blocks, sensitivity.overhead_bytes)

    def regret(block: Block, precision: Precision) -> float:
        """The most that `precision` instead of the plan's can gain in this block."""
        own, other = allocator.bits_by_kind(plan.precisions[block.name]), allocator.bits_by_kind(precision)

        def at(kind: str, bits: Mapping[str, int]) -> Prediction:
            return sensitivity.measured(score, block, kind, bits[kind])

        changed = [kind for kind in own if own[kind] != other[kind]]
        return sum(_gain(at(kind, own), at(kind, other), together) for kind in changed)

    choices = problem.choices(lambda block, precision: 0.0)
    options = [(group, option) for group in problem.groups for option in group.options]
    regrets = np.array([sum(regret(block, option) for block in group.blocks) for group, option in options])
    highest = -choices.least(-regrets)  # of each group
    shifted = replace(choices, scores=highest[choices.owner] - regrets)
    solution = minimise(shifted, 0.0, allocator.time_limit)
    scale = max(float(np.abs(regrets).max()), 1e-300)
    return solution is not None and float(highest.sum()) - solution.bound <= 1e-9 * scale


def _gain(own: Prediction, other: Prediction, together: bool) -> float:
    """The most by which `own` can lie above `other`, each within its error and never below 0."""
    signs = ((-1, -1), (1, 1)) if together else ((1, -1),)
    return max(max(own.moved(a).value, 0.0) - max(other.moved(b).value, 0.0) for a, b in signs)
