"""One option per group, least total score, under several linear limits: an integer program, solved to a proof."""

from __future__ import annotations

import time
from heapq import heappop, heappush
from itertools import count

import numpy as np

from hawq.allocation.choices import TOLERANCE, Choices, Solution, normalised
from hawq.allocation.highs import settle
from hawq.allocation.partial_search import search
from hawq.allocation.relaxation import Relaxed, improved, relax, rounded, split
from hawq.errors import UserError

_PARTS = 200  # steps of branch and bound before HiGHS takes over
_BRANCHES = 8  # groups with more open options than this are not split


def minimise(choices: Choices, gap: float = 0.0, time_limit: float = 60.0) -> Solution | None:
    """min Σ score over one option per group, s.t. Σ cost ≤ limit for every limit; None when nothing fits.

    Branch and bound. A part of the solutions whose relaxation leaves little open is searched exhaustively; any other
    one is split by the options of the group with the largest fractional cost. After `_PARTS` parts, or at a group
    with many options, HiGHS solves the whole problem. Stops at the relative `gap`, or after `time_limit` seconds with
    the best solution so far.

    Raises:
        UserError: the time is up before there is any solution.
    """
    deadline = time.monotonic() + time_limit
    kept, small = normalised(choices)
    whole = None if small is None else relax(small)
    if small is None or whole is None:
        return None
    first = rounded(small, whole.shares)
    best = None if first is None else improved(small, first, whole.distance)
    closed, tickets = np.inf, count()
    parts: list[tuple[float, int, np.ndarray, Relaxed | None]] = []
    heappush(parts, (whole.bound, next(tickets), np.arange(len(small.owner)), whole))
    for _ in range(_PARTS):
        if best is None or not parts or time.monotonic() > deadline:
            break
        bound, _, options, relaxed = heappop(parts)
        part, score = small.only(options), small.score(best)
        if relaxed is None:  # so far only the bound of its parent is known
            relaxed = relax(part)
            if relaxed is not None:
                heappush(parts, (max(bound, relaxed.bound), next(tickets), options, relaxed))
            continue
        if score - bound <= max(gap, TOLERANCE) * score:
            closed = min(closed, bound)
            continue
        near_one = rounded(part, relaxed.shares)
        if near_one is not None and part.score(near_one) < score:
            best, score = options[near_one], part.score(near_one)
        near = np.flatnonzero(relaxed.distance <= (score - relaxed.bound) * (1 + 1e-9))  # no other one leads to better
        part, relaxed, options = part.only(near), relaxed.only(near), options[near]
        found = search(part, relaxed, score - relaxed.bound)
        if found is not None:
            best = options[found] if len(found) and part.score(found) < score else best
            continue
        if not _branch(parts, tickets, part, relaxed, options, bound):
            break
    if best is not None and (not parts or time.monotonic() > deadline):
        score = small.score(best)
        return Solution(kept[best], score, min(closed, score, *(part[0] for part in parts[:1])))
    return _finish(small, kept, whole, best, gap, deadline, time_limit)


def _branch(
    parts: list[tuple[float, int, np.ndarray, Relaxed | None]],
    tickets: count[int],
    part: Choices,
    relaxed: Relaxed,
    options: np.ndarray,
    bound: float,
) -> bool:
    """Puts a part back as one part per option of one group; False, with the part put back whole, for too many."""
    branches = split(part, relaxed)
    if len(branches) > _BRANCHES:
        heappush(parts, (bound, next(tickets), options, relaxed))
        return False
    for option in branches:
        rest = options[(part.owner != part.owner[option]) | (np.arange(len(options)) == option)]
        heappush(parts, (max(bound, relaxed.bound + relaxed.distance[option]), next(tickets), rest, None))
    return True


def _finish(
    choices: Choices,
    kept: np.ndarray,
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
        return Solution(kept[best], score, relaxed.bound)
    if found is None:
        return None if best is None else Solution(kept[best], score, relaxed.bound)
    bound = max(relaxed.bound, found.bound)  # options were dropped only where no solution below `best` could use them
    if best is None or found.score < score:
        return Solution(kept[still[found.chosen]], found.score, bound)
    return Solution(kept[best], score, bound)
