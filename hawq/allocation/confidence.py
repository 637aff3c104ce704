"""Whether a plan holds within the errors of the curvature from which it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hawq.allocation.allocator import Weighted
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.solver import minimise
from hawq.checks import check_range
from hawq.records import BitPlan, Block, Confidence, Estimate, Precision, Sensitivity

MOST_DRAWS = 10_000


def confidence(
    sensitivity: Sensitivity, allocator: Weighted, plan: BitPlan, draws: int, seed: int = 0
) -> Confidence | None:
    """The plan recomputed `draws` times, each λ_i or trace moved to value + error or value − error at random.

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
    weighting = sensitivity.weighting(allocator.weighting)
    if not any(row.curvature(weighting).error for row in sensitivity.rows):
        return None
    rng = np.random.default_rng(seed)

    def coin() -> int:
        return 1 if rng.random() < 0.5 else -1

    seen = [allocator.allocate(_moved(sensitivity, coin)).precisions for _ in range(draws)]
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
    """Whether no curvature within value ± error makes another allowed plan better than `plan`.

    The largest regret, max over plans q of Σ_i max_{|c − c_i| ≤ e_i} c · (E_i(p_i) − E_i(q_i)), E the squared errors,
    is itself an allocation problem with the same choices and limits; the plan is proven when it is zero. A negative c
    counts as 0, as in Ω. Raises UserError as `allocate` does.
    """
    weighting = sensitivity.weighting(allocator.weighting)
    moved = (_moved(sensitivity, lambda: -1), _moved(sensitivity, lambda: 1))
    ends = [{row.block.name: row for row in end.rows} for end in moved]
    problem = allocator.problem(sensitivity.blocks, sensitivity.overhead_bytes)

    def regret(block: Block, precision: Precision) -> float:
        """The most that `precision` instead of the plan's can gain in this block."""
        mine, rows = plan.precisions[block.name], [end[block.name] for end in ends]
        return sum(max(part(row, mine) - part(row, precision) for row in rows) for part in allocator.parts(weighting))

    choices = problem.choices(lambda block, precision: 0.0)
    options = [(group, option) for group in problem.groups for option in group.options]
    regrets = np.array([sum(regret(block, option) for block in group.blocks) for group, option in options])
    highest = -choices.least(-regrets)  # of each group
    shifted = replace(choices, scores=highest[choices.owner] - regrets)
    solution = minimise(shifted, 0.0, allocator.time_limit)
    scale = max(float(np.abs(regrets).max()), 1e-300)
    return solution is not None and float(highest.sum()) - solution.bound <= 1e-9 * scale


def _moved(sensitivity: Sensitivity, sign: Callable[[], int]) -> Sensitivity:
    """The sensitivity with each estimate moved by one error, up or down as `sign` says (1 or −1)."""

    def move(estimate: Estimate | None) -> Estimate | None:
        return estimate and replace(estimate, value=estimate.value + sign() * estimate.error)

    rows = [
        replace(
            row,
            eigenvalue=move(row.eigenvalue),
            trace=move(row.trace),
            proxy=move(row.proxy),
            activation_trace=move(row.activation_trace),
        )
        for row in sensitivity.rows
    ]
    return replace(sensitivity, rows=tuple(rows))
