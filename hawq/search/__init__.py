"""Search for plans by measurement: refinement, and searches by evaluation to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hawq.lazy import lazy_names
from hawq.search.settings import Search

if TYPE_CHECKING:
    from hawq.search.haq import Haq
    from hawq.search.measuring import JointSteps
    from hawq.search.objective import Objective
    from hawq.search.optuna_search import OptunaSearch
    from hawq.search.plans import Plans
    from hawq.search.random_search import RandomSearch
    from hawq.search.searching import Judging, refine, search_plan

_HOMES = {
    "Haq": "haq",
    "JointSteps": "measuring",
    "Judging": "searching",
    "Objective": "objective",
    "OptunaSearch": "optuna_search",
    "Plans": "plans",
    "RandomSearch": "random_search",
    "refine": "searching",
    "search_plan": "searching",
}

__all__ = [
    "Haq",
    "JointSteps",
    "Judging",
    "Objective",
    "OptunaSearch",
    "Plans",
    "RandomSearch",
    "Search",
    "refine",
    "search_plan",
]


__getattr__ = lazy_names(__name__, _HOMES)
