"""The frontier: the least Σ Ω at every budget, each point a plan that can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.monotone import Monotone
from hawq.errors import UserError
from hawq.records import Cost, Sensitivity

_GAP = 1e-3  # a point need not be nearer to the optimum than the eye can see; its own proven gap stands beside it


@dataclass(frozen=True)
class FrontierPoint:
    """One plan of the frontier: `bits.target` that gives it, Σ Ω_i with its proven gap, its cost in every unit."""

    target: float
    objective: float
    gap: float
    cost: Cost


@dataclass(frozen=True)
class Frontier:
    """Plans along one budget, by rising cost; all other limits of the allocator hold at each point."""

    unit: str
    weighting: str
    points: tuple[FrontierPoint, ...]


def frontier(sensitivity: Sensitivity, allocator: IntegerProgram | Monotone, num_points: int) -> Frontier:
    """Plans at `num_points` budgets, evenly spread on a logarithmic scale from the least feasible to the largest.

    Equal plans stand once; budgets that the other limits rule out are left out.
    """
    main = allocator.problem(sensitivity.blocks, sensitivity.overhead_bytes)
    limit = main.limits[0]
    least, most = main.reach(limit)
    rough = replace(allocator, gap=max(allocator.gap, _GAP)) if isinstance(allocator, IntegerProgram) else allocator
    points: dict[float, FrontierPoint] = {}
    for total in np.geomspace(least, most, num_points):
        try:
            plan = replace(rough, target=limit.value(float(total))).allocate(sensitivity)
        except UserError:
            continue
        assert plan.objective is not None and plan.gap is not None
        reached = plan.limits[0].reached
        points[reached] = FrontierPoint(reached, plan.objective, plan.gap, plan.cost)
    return Frontier(limit.unit, sensitivity.weighting(allocator.weighting), tuple(points.values()))
