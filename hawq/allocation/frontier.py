"""The frontier: the least objective at each budget, where each point is a plan that can be requested."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hawq.allocation.allocator import CANDIDATES
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.monotone import Monotone
from hawq.checks import check_range
from hawq.errors import UserError
from hawq.records import Cost, Precision, Sensitivity

_GAP = 1e-3  # no difference the eye can see; each point states its own proven gap

MOST_POINTS = 1_000


@dataclass(frozen=True)
class FrontierPoint:
    """One plan of the frontier: the `target` that gives it, its objective with proven gap, its cost in each unit, its
    bits (block → precision; empty in files of earlier versions).
    """

    target: float
    objective: float
    gap: float
    cost: Cost
    precisions: dict[str, Precision] = field(default_factory=dict)


@dataclass(frozen=True)
class Frontier:
    """Plans along one budget (in `unit`), by rising cost; `score` predicts their objectives.

    All other limits of the allocator hold at each point.
    """

    unit: str
    score: str
    points: tuple[FrontierPoint, ...]


def frontier(sensitivity: Sensitivity, allocator: IntegerProgram | Monotone, num_points: int) -> Frontier:
    """Plans at budgets spaced evenly on a logarithmic scale, from the least feasible one to the largest.

    Args:
        sensitivity: of the blocks.
        allocator: its main limit is varied, all others stay.
        num_points: budgets tried, 2 … 1,000. Equal plans are listed once; budgets that the other limits rule out are
            left out.

    Raises:
        ValueError: `num_points` out of range, or the blocks lack what a limit needs.
    """
    check_range("num_points", num_points, least=2, most=MOST_POINTS)
    if allocator.unit == "uniform_bits":  # which small plans have fewer than none of
        allocator = replace(allocator, unit="average_bits", target=max(CANDIDATES))
    main = allocator.problem(sensitivity.blocks, sensitivity.overhead_bytes)
    limit = main.limits[0]
    least, most = main.reach(limit)
    rough = replace(allocator, gap=max(allocator.gap, _GAP)) if isinstance(allocator, IntegerProgram) else allocator
    points: dict[float, FrontierPoint] = {}
    first = least if least > 0 else most / 1e3  # a table of latencies may hold zeros
    for total in np.geomspace(first, most, num_points) if most > 0 else ():
        try:
            plan = replace(rough, target=limit.value(float(total))).allocate(sensitivity)
        except UserError:
            continue
        assert plan.objective is not None and plan.gap is not None
        reached = plan.limits[0].reached
        target = reached if reached > 0 else plan.limits[0].target  # a target of 0 cannot be given
        points.setdefault(reached, FrontierPoint(target, plan.objective, plan.gap, plan.cost, plan.precisions))
    return Frontier(limit.unit, sensitivity.score_name(allocator.score), tuple(points.values()))
