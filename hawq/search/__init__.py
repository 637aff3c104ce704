"""Search for plans by measurement: refinement, and searches by evaluation to compare with."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Loads the module of a name when it is first used: the settings need no PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
