"""Random search: the baseline that every search by evaluation has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawq.allocation.allocator import check_evaluations
from hawq.allocation.plan_space import PlanSpace
from hawq.checks import check_range
from hawq.components import component
from hawq.errors import UserError
from hawq.records import BitPlan, Sensitivity
from hawq.search.layer_facts import LayerFacts
from hawq.search.objective import Objective
from hawq.search.plans import Plans
from hawq.search.refining import Found

_DRAWS = 100  # in a row that give a known plan, after which the space counts as exhausted


def best_found(objective: Objective) -> Found:
    """The best plan that was measured on all images. Raises UserError where there is none."""
    best = objective.best
    if best is None:
        raise UserError("no plan was measured: give evaluations=1 or more")
    return Found(best.plan, 0)


def refuse_allocation(evaluations: int) -> BitPlan:
    """Raises UserError: an analysis alone does not tell the plan of a search by evaluation."""
    raise UserError(
        f"evaluations={evaluations} plans are to be measured, which needs the network and images: use hawq.search_plan "
        "or an allocator that reads the analysis alone, say bits=mixed"
    )


@component("bits/random_search")
@dataclass(frozen=True)
class RandomSearch(PlanSpace):
    """The best of random plans, each within all limits and using them up.

    Args:
        target, unit, limits, candidates, overrides, tied, activations, activation_candidates, latency: which plans are
            allowed; as in `IntegerProgram`.
        evaluations: plans that are measured.
        seed: of the draws.

    Raises:
        ValueError: a value out of range; `check`: limits that cannot be met.
    """

    evaluations: int = 100
    seed: int = 0
    method = "random search"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_evaluations("evaluations", self.evaluations, least=1)
        check_range("seed", self.seed, least=0, most=2**63 - 1)

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """Raises UserError: the plan is not known without measuring."""
        return refuse_allocation(self.evaluations)

    def search(self, objective: Objective, plans: Plans, facts: Sequence[LayerFacts]) -> Found:
        """The best of the plans drawn; fewer than asked for where the space has no more."""
        rng = np.random.default_rng(self.seed)
        repeated = 0
        while objective.left > 0 and repeated < _DRAWS:
            plan = plans.plan(plans.random(rng))
            repeated = repeated + 1 if objective.knows(plan) else 0
            objective.values(plan)
        return best_found(objective)
