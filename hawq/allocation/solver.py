"""One option per group, least total score, under several linear limits: an integer program, solved to a proof."""

from __future__ import annotations

import time
from heapq import heappop, heappush
from itertools import count

import numpy as np

from hawq.allocation.choices import TOLERANCE, Choices, Solution, hidden_ties, normalised
from hawq.allocation.highs import settle
from hawq.allocation.partial_search import all_within, search
from hawq.allocation.relaxation import Relaxed, improved, relax, rounded, split, without_limits
from hawq.errors import UserError

_PARTS = 200  # steps of branch and bound before HiGHS takes over
_BRANCHES = 8  # groups with more open options than this are not split


def minimise(choices: Choices, gap: float = 0.0, time_limit: float = 60.0) -> Solution | None:
    """min Σ score over one option per group, s.t. Σ cost ≤ limit for every limit; None when nothing fits.

    Branch and bound. A part of the solutions whose relaxation leaves little open is searched exhaustively; any other
    one is split by the options of the group with the largest fractional cost. After `_PARTS` parts, or at a group
    with many options, HiGHS solves the whole problem. Stops at the relative `gap`, or after `time_limit` seconds with
    the best solution so far.

    With second scores, the solution has the least Σ of these among all with the least Σ score: where the first search
    has left such ties open, the least score becomes one more limit and the second scores are minimised under it.

    Raises:
        UserError: the time is up before there is any solution.
    """
    deadline = time.monotonic() + time_limit
    kept, small = normalised(choices)
    whole = None if small is None else relax(small)
    if small is None or whole is None:
        return None
    walk = _BranchAndBound(small, whole, gap, deadline)
    if walk.run():
        solution: Solution | None = walk.solution()
    else:
        solution = _finish(small, whole, walk.best, gap, deadline, time_limit)
    if solution is None:
        return None
    solution = Solution(kept[solution.chosen], solution.score, solution.bound)
    if choices.seconds is None or not (walk.ties_open or hidden_ties(choices, kept)):
        return solution
    return _without_ties(choices, solution, gap, deadline)


class _BranchAndBound:
    """The parts of the solutions that are still open, and the best solution so far.

    `ties_open` says that some part was left, or may have been, with solutions that score no more than the best one.
    """

    def __init__(self, choices: Choices, whole: Relaxed, gap: float, deadline: float) -> None:
        self.choices, self.gap, self.deadline = choices, gap, deadline
        first = rounded(choices, whole.shares)
        self.best = None if first is None else improved(choices, first, whole.distance)
        self.closed, self.ties_open, self.scale = np.inf, False, float(choices.scores.max())
        self._tickets = count()
        self._parts: list[tuple[float, int, np.ndarray, Relaxed | None]] = []
        self._add(whole.bound, np.arange(len(choices.owner)), whole)

    def _add(self, bound: float, options: np.ndarray, relaxed: Relaxed | None) -> None:
        heappush(self._parts, (bound, next(self._tickets), options, relaxed))

    def _offer(self, chosen: np.ndarray) -> None:
        if self.best is None or self.choices.better(chosen, self.best):
            self.best = chosen

    def run(self) -> bool:
        """Whether nothing is left to do: every part was closed, or the time is up."""
        for _ in range(_PARTS):
            if self.best is None or not self._parts or time.monotonic() > self.deadline:
                break
            if not self._step(*heappop(self._parts), self.best):
                break
        done = self.best is not None and (not self._parts or time.monotonic() > self.deadline)
        self.ties_open |= not done
        return done

    def _step(self, bound: float, _: int, options: np.ndarray, relaxed: Relaxed | None, best: np.ndarray) -> bool:
        """Bounds, closes, searches or splits one part; False, with the part put back, where none of this helps."""
        part, score = self.choices.only(options), self.choices.score(best)
        if relaxed is None:  # so far only the bound of its parent is known
            relaxed = relax(part)
            if relaxed is not None:
                self._add(max(bound, relaxed.bound), options, relaxed)
            return True
        if score - bound <= max(self.gap, TOLERANCE) * score:
            self.closed = min(self.closed, bound)
            self.ties_open |= score - bound <= TOLERANCE * score and bound <= score + TOLERANCE * self.scale
            return True
        near_one = rounded(part, relaxed.shares)
        if near_one is not None:
            self._offer(options[near_one])
            score = min(score, part.score(near_one))
        below = (score - relaxed.bound) * (1 + 1e-9) + score * TOLERANCE
        near = np.flatnonzero(relaxed.distance <= below)  # no other option leads to a solution as good
        part, relaxed, options = part.only(near), relaxed.only(near), options[near]
        found = search(part, relaxed, max(score - relaxed.bound, 0.0))
        if found is not None:
            if len(found):
                self._offer(options[found])
            return True
        return self._branch(part, relaxed, options, bound)

    def _branch(self, part: Choices, relaxed: Relaxed, options: np.ndarray, bound: float) -> bool:
        """Puts a part back as one part per option of one group; False, with the part put back whole, for too many."""
        branches = split(part, relaxed)
        if len(branches) > _BRANCHES:
            self._add(bound, options, relaxed)
            return False
        for option in branches:
            rest = options[(part.owner != part.owner[option]) | (np.arange(len(options)) == option)]
            self._add(max(bound, relaxed.bound + relaxed.distance[option]), rest, None)
        return True

    def solution(self) -> Solution:
        """The best solution, with the least bound of what was closed or is still open."""
        assert self.best is not None
        score = self.choices.score(self.best)
        return Solution(self.best, score, min(self.closed, score, *(part[0] for part in self._parts[:1])))


def _finish(
    choices: Choices,
    relaxed: Relaxed,
    best: np.ndarray | None,
    gap: float,
    deadline: float,
    time_limit: float,
) -> Solution | None:
    """What the parts left open, by HiGHS: among the options that a solution better than `best` can use."""
    score = np.inf if best is None else choices.score(best)
    below = (score - relaxed.bound) * (1 + 1e-9)
    still = np.flatnonzero(relaxed.distance <= below)
    try:
        found = settle(choices.only(still), min(below, float(choices.scores.sum()) or 1.0), gap, deadline)
    except TimeoutError:
        if best is None:
            raise UserError(f"time_limit={time_limit:g} seconds were too few to find any plan: give more") from None
        return Solution(best, score, relaxed.bound)
    if found is None:
        return None if best is None else Solution(best, score, relaxed.bound)
    bound = max(relaxed.bound, found.bound)  # options were dropped only where no solution below `best` could use them
    if best is None or choices.better(still[found.chosen], best):
        return Solution(still[found.chosen], found.score, bound)
    return Solution(best, score, bound)


def _without_ties(choices: Choices, first: Solution, gap: float, deadline: float) -> Solution:
    """The solution with the least second score among those that score no more than `first`.

    What an option scores above that of `first` is its cost in one more limit, which leaves room for rounding errors
    only; where that room was too large, the limit is 0. When the time is up, `first` stands.
    """
    assert choices.seconds is not None
    more = choices.scores - choices.scores[first.chosen][choices.owner]
    for slack in (-TOLERANCE * float(choices.least(more).sum()), 0.0):
        costs, limits = np.vstack([choices.costs, more]), np.append(choices.limits, slack)
        options, tied = normalised(Choices(choices.seconds, costs, limits, choices.owner))
        chosen = None if tied is None else _least_tied(choices.scores[options], tied, first.score, gap, deadline)
        if chosen is not None and choices.better(options[chosen], first.chosen):
            return Solution(options[chosen], choices.score(options[chosen]), first.bound)
        if chosen is None or choices.second(options[chosen]) >= choices.second(first.chosen):
            break
    return first


def _least_tied(scores: np.ndarray, tied: Choices, most: float, gap: float, deadline: float) -> np.ndarray | None:
    """The best solution of a tied problem, whose last limit keeps Σ `scores` to `most`; None when the time is up.

    Where scores differ, the bound of the first problem leaves few options, and often all their solutions can be listed.
    """
    still = np.arange(len(scores))
    first = Choices(scores, tied.costs[:-1], tied.limits[:-1], tied.owner)
    for bounded in (without_limits, relax):
        relaxed = bounded(first) if most > 0 else None
        if relaxed is None:
            break
        below = (most - relaxed.bound) * (1 + 1e-9) + most * TOLERANCE
        listed = all_within(first, relaxed, below)
        if listed is not None:
            allowed = [one for one in listed[0] if tied.allow(one)]
            return min(allowed, key=tied.score, default=None)
        still = np.flatnonzero(relaxed.distance <= below)
    try:
        found = minimise(tied.only(still), gap, max(deadline - time.monotonic(), 0.0))
    except UserError:
        return None
    return None if found is None else still[found.chosen]
