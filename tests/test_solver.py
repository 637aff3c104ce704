"""The exact solver on bare numbers: each path through it, against brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from hawq.allocation import partial_search, solver
from hawq.allocation.choices import Choices
from hawq.allocation.solver import minimise
from hawq.errors import UserError

WAYS = {  # constants that force a path through the solver
    "search": {},
    "branches": {"_PARTIAL": 1},
    "HiGHS": {"_PARTIAL": 0, "_BRANCHES": 0},
    "branches, then HiGHS": {"_PARTIAL": 0, "_PARTS": 4},
}


def instance(seed: int) -> Choices:
    """2 to 5 groups of 1 to 5 options, up to 3 limits; whole numbers with many ties, or scores over eight decades."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(2, 6))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    scores = rng.integers(0, 6, len(owner)).astype(float) if seed % 2 else 10 ** rng.uniform(-4, 4, len(owner))
    costs = rng.integers(0, 9, (rng.integers(0, 4), len(owner))).astype(float)
    ends = [[f(costs[:, owner == g], axis=1) for g in range(len(sizes))] for f in (np.min, np.max)]
    least, most = (np.sum(parts, axis=0) for parts in ends)
    place = rng.uniform(-0.02, 0.9, len(costs))
    limits = least + place * (most - least)
    seconds = rng.integers(0, 9, len(owner)).astype(float) if seed % 5 else rng.random(len(owner))
    if seed % 4 == 1:
        scores[rng.random(len(owner)) < 0.7] = 0.0
    return Choices(scores, costs, np.round(limits) if seed % 3 else limits, owner, seconds)


def brute_force(choices: Choices) -> tuple[float, float] | None:
    """The least Σ score, and the least Σ second score that goes with it."""
    groups = [np.flatnonzero(choices.owner == group) for group in range(choices.num_groups)]
    plans = [list(plan) for plan in itertools.product(*groups)]
    fitting = [plan for plan in plans if (choices.costs[:, plan].sum(1) <= choices.limits * (1 + 1e-12)).all()]
    if not fitting:
        return None
    least = min(choices.scores[plan].sum() for plan in fitting)
    ties = [plan for plan in fitting if choices.scores[plan].sum() <= least * (1 + 1e-13)]
    return least, 0.0 if choices.seconds is None else min(choices.seconds[plan].sum() for plan in ties)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_equals_brute_force(way, monkeypatch):
    for name, value in way.items():
        monkeypatch.setattr(partial_search if name == "_PARTIAL" else solver, name, value)
    settled = []
    finish = solver._finish
    monkeypatch.setattr(solver, "_finish", lambda *given: settled.append(1) or finish(*given))
    infeasible = 0
    for seed in range(120):
        choices = instance(seed)
        best, solution = brute_force(choices), minimise(choices)
        assert (best is None) == (solution is None), seed
        if solution is None:
            infeasible += 1
            continue
        assert solution.score == pytest.approx(best[0], rel=1e-12) == choices.scores[solution.chosen].sum(), seed
        assert choices.seconds[solution.chosen].sum() == pytest.approx(best[1], rel=1e-12), seed
        assert minimise(replace(choices, seconds=None)).score == pytest.approx(best[0], rel=1e-12), seed
        assert choices.owner[solution.chosen].tolist() == list(range(choices.num_groups))
        assert (choices.costs[:, solution.chosen].sum(1) <= choices.limits * (1 + 1e-12)).all()
        assert solution.gap < 1e-9
    assert 5 < infeasible < 100
    assert ("_BRANCHES" in way or "_PARTS" in way) == (len(settled) > 10), "the other way was taken"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_limit_holds_exactly(way, monkeypatch):
    """An optimum that overruns a limit by 3e-12 of it is refused; HiGHS alone would let it through."""
    for name, value in way.items():
        monkeypatch.setattr(partial_search if name == "_PARTIAL" else solver, name, value)
    cuts, stack = [], scipy.sparse.vstack
    monkeypatch.setattr(scipy.sparse, "vstack", lambda *given: cuts.append(1) or stack(*given))
    rng = np.random.default_rng(0)
    costs = np.tile([0.0, 1.0], 12) * np.repeat(rng.integers(10**8, 10**9, 12), 2)
    scores = np.tile([1.0, 0.0], 12) * np.repeat(rng.uniform(1, 2, 12), 2)
    roomy = Choices(scores, costs[None], np.array([0.5 * costs.sum()]), np.repeat(np.arange(12), 2))
    used = costs[minimise(roomy).chosen].sum()
    exact, short = (replace(roomy, limits=np.array([used * (1 - excess)])) for excess in (0, 3e-12))
    assert minimise(exact).score == minimise(roomy).score < minimise(short).score
    assert minimise(short).score == pytest.approx(brute_force(short)[0], rel=1e-12)
    assert bool(cuts) == (way.get("_PARTIAL") == 0), "only HiGHS needs to be cut"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gap_and_time_limit(way, monkeypatch):
    for name, value in way.items():
        monkeypatch.setattr(partial_search if name == "_PARTIAL" else solver, name, value)
    rng = np.random.default_rng(3)
    costs = np.tile(np.arange(1.0, 6), 40) * np.repeat(rng.integers(1, 100, 40), 5)
    scores = np.tile(4.0 ** -np.arange(1.0, 6), 40) * np.repeat(rng.uniform(1, 100, 40), 5)
    choices = Choices(scores, costs[None], np.array([0.4 * costs.sum() / 3]), np.repeat(np.arange(40), 5))
    exact = minimise(choices)
    for rough in (minimise(choices, gap=0.1), minimise(choices, time_limit=0)):
        assert exact.score <= rough.score * (1 + 1e-12) and rough.bound <= exact.score * (1 + 1e-12)
    assert minimise(choices, gap=0.1).gap <= 0.1 and exact.gap < 1e-9


def test_no_solution_in_time_is_said(monkeypatch):
    monkeypatch.setattr(solver, "rounded", lambda *given: None)
    with pytest.raises(UserError, match=r"time_limit=0 seconds were too few to find any plan"):
        minimise(instance(6), time_limit=0)
