"""Optuna's samplers on plans: TPE and CMA-ES."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from hawq.allocation.allocator import check_evaluations
from hawq.allocation.plan_space import PlanSpace
from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.errors import UserError
from hawq.records import BitPlan, Block, Precision, Sensitivity
from hawq.search.layer_facts import LayerFacts
from hawq.search.objective import Objective
from hawq.search.plans import Plans
from hawq.search.random_search import best_found, refuse_allocation
from hawq.search.refining import Found

SAMPLERS = {"tpe": ("TPE", "optuna"), "cmaes": ("CMA-ES", "cmaes")}
"""Sampler → how it is called, and the package that it needs."""

_ASKED = 10  # times as many proposals as evaluations, for samplers that repeat themselves


@component("bits/optuna")
@dataclass(frozen=True)
class OptunaSearch(PlanSpace):
    """The best plan that a sampler of Optuna comes to (Akiba et al., 1907.10902), one whole number per group and kind.

    A plan over a limit is lowered to it as HAQ's are (`Plans.shrunk`), and counts for the bits that were proposed. A
    plan that was measured before costs no evaluation.

    Args:
        target, unit, limits, candidates, overrides, tied, activations, activation_candidates, latency: which plans are
            allowed; as in `IntegerProgram`.
        evaluations: plans that are measured.
        sampler: "tpe" or "cmaes", with Optuna's defaults.
        seed: of the sampler.

    Raises:
        ValueError: a value out of range; `check`: Optuna is not installed, or limits that cannot be met.
    """

    evaluations: int = 100
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_evaluations("evaluations", self.evaluations, least=1)
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        check_range("seed", self.seed, least=0, most=2**32 - 1)

    @property
    def method(self) -> str:
        """The name in records."""
        return f"Optuna {SAMPLERS[self.sampler][0]}"

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError where Optuna is not installed, or no plan for `blocks` can meet all limits."""
        for package in ("optuna", SAMPLERS[self.sampler][1]):
            if find_spec(package) is None:
                raise UserError(f"sampler={self.sampler} needs {package}, which is absent: pip install 'hawq[search]'")
        super().check(blocks, overhead_bytes)

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """Raises UserError: the plan is not known without measuring."""
        return refuse_allocation(self.evaluations)

    def search(self, objective: Objective, plans: Plans, facts: Sequence[LayerFacts]) -> Found:
        """The best of the plans that the sampler proposes, one after the other."""
        import optuna

        with _quiet(optuna):
            study = optuna.create_study(sampler=self._sampler(optuna))
            asked = 0
            while objective.left > 0 and asked < _ASKED * self.evaluations:
                trial = study.ask()
                plan = plans.plan(plans.shrunk(_proposed(trial, plans)))
                study.tell(trial, objective.mean(plan))
                asked += 1
        return best_found(objective)

    def _sampler(self, optuna: Any) -> Any:
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=self.seed)
        return optuna.samplers.CmaEsSampler(seed=self.seed)


def _proposed(trial: Any, plans: Plans) -> np.ndarray:
    """(groups,): the options that a trial proposes; what cannot be chosen is no parameter."""

    def level(name: str, levels: list[int]) -> int:
        return levels[trial.suggest_int(name, 0, len(levels) - 1)] if len(levels) > 1 else levels[0]

    chosen = []
    for group in range(len(plans.members)):
        weights, activations = plans.levels(group)
        bits = Precision(level(f"weights {group}", weights), level(f"activations {group}", activations))
        place = plans.at(group, bits)
        chosen.append(place if place is not None else int(plans.members[group][-1]))
    return np.array(chosen)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna logs warnings alone."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
