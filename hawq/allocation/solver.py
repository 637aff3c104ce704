"""One choice for each group, least total score, under several linear limits: an integer program, solved to a proof."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from hawq.errors import UserError

_TOLERANCE = 1e-12  # relative: a limit that was computed in floating point may miss its own plan by a rounding
_ROW = 1e4  # what HiGHS sees for 1, so that its feasibility tolerance of 1e-6 is far below any real excess
_TIME_IS_UP, _NOTHING_FITS = 1, 2  # SciPy's status
_SWAPS = 300  # options that are tried in pairs when a solution is improved
_PARTIAL = 3_000  # partial solutions that the search keeps before it gives up
_PARTS = 200  # steps of branch and bound before HiGHS takes over
_BRANCHES = 8  # options of a group that it still splits


@dataclass(frozen=True)
class Choices:
    """Options of all groups, one after the other.

    Args:
        scores: (M,) of the options, finite, none negative.
        costs: (L, M), of each option in each limit.
        limits: (L,), the largest allowed totals.
        owner: (M,), the group of each option: 0, …, 0, 1, …, 1, …; every group owns at least one.
    """

    scores: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    owner: np.ndarray

    @property
    def num_groups(self) -> int:
        return int(self.owner[-1]) + 1

    def starts(self) -> np.ndarray:
        """(groups,): the index of each group's first option."""
        return np.searchsorted(self.owner, np.arange(self.num_groups))

    def least(self, values: np.ndarray) -> np.ndarray:
        """(…, M) → (…, groups): the least value among each group's options."""
        return np.minimum.reduceat(values, self.starts(), axis=-1)

    def only(self, keep: np.ndarray) -> Choices:
        """The choices among the options at the indices `keep`."""
        return Choices(self.scores[keep], self.costs[:, keep], self.limits, self.owner[keep])

    def score(self, chosen: np.ndarray) -> float:
        """Σ of the scores of the options at `chosen`, one a group."""
        return float(self.scores[chosen].sum())

    def allow(self, chosen: np.ndarray) -> bool:
        """Whether the options at `chosen`, one a group, stay within all limits."""
        return bool((self.costs[:, chosen].sum(1) <= self.limits).all())


@dataclass(frozen=True)
class Solution:
    """The index of each group's option, Σ of their scores, and a proven lower bound of the best possible Σ."""

    chosen: np.ndarray
    score: float
    bound: float

    @property
    def gap(self) -> float:
        """(score − bound) / score; 0 for a proven optimum."""
        return max(self.score - self.bound, 0.0) / self.score if self.score > 0 else 0.0


@dataclass(frozen=True)
class _Relaxed:
    """The linear relaxation: multipliers μ (L,), shares of options (M,), and what they prove.

    No solution scores less than `bound` = Σ_g min_o (score + μ·cost) − μ·limits, and none with option o less than
    `bound` + `distance`[o].
    """

    multipliers: np.ndarray
    shares: np.ndarray
    distance: np.ndarray
    bound: float

    def only(self, keep: np.ndarray) -> _Relaxed:
        """The same for the options at the indices `keep`."""
        return _Relaxed(self.multipliers, self.shares[keep], self.distance[keep], self.bound)


def minimise(choices: Choices, gap: float = 0.0, time_limit: float = 60.0) -> Solution | None:
    """min Σ score over one option a group, s.t. Σ cost ≤ limit for every limit; None when nothing fits.

    Branch and bound. A part of the solutions whose relaxation leaves little open is searched to the end; any other
    one is split by the options of the group with the largest fractional cost. After `_PARTS` parts, or at a group
    with many options, HiGHS settles the whole. Stops at the relative `gap`, or after `time_limit` seconds with the
    best solution so far. Raises UserError when the time is up before there is any.
    """
    deadline = time.monotonic() + time_limit
    kept, small = _normalised(choices)
    whole = None if small is None else _relax(small)
    if small is None or whole is None:
        return None
    first = _round(small, whole.shares)
    best = None if first is None else _improve(small, first, whole.distance)
    closed, tickets = np.inf, count()
    parts: list[tuple[float, int, np.ndarray, _Relaxed | None]] = []
    heappush(parts, (whole.bound, next(tickets), np.arange(len(small.owner)), whole))
    for _ in range(_PARTS):
        if best is None or not parts or time.monotonic() > deadline:
            break
        bound, _, options, relaxed = heappop(parts)
        part, score = small.only(options), small.score(best)
        if relaxed is None:  # so far only the bound of its parent is known
            relaxed = _relax(part)
            if relaxed is not None:
                heappush(parts, (max(bound, relaxed.bound), next(tickets), options, relaxed))
            continue
        if score - bound <= max(gap, _TOLERANCE) * score:
            closed = min(closed, bound)
            continue
        rounded = _round(part, relaxed.shares)
        if rounded is not None and part.score(rounded) < score:
            best, score = options[rounded], part.score(rounded)
        near = np.flatnonzero(relaxed.distance <= (score - relaxed.bound) * (1 + 1e-9))  # the rest leads to no better
        part, relaxed, options = part.only(near), relaxed.only(near), options[near]
        found = _search(part, relaxed, score - relaxed.bound)
        if found is not None:
            best = options[found] if len(found) and part.score(found) < score else best
            continue
        split = _split(part, relaxed)
        if len(split) > _BRANCHES:
            heappush(parts, (bound, next(tickets), options, relaxed))
            break
        for option in split:
            rest = options[(part.owner != part.owner[option]) | (np.arange(len(options)) == option)]
            heappush(parts, (max(bound, relaxed.bound + relaxed.distance[option]), next(tickets), rest, None))
    if best is not None and (not parts or time.monotonic() > deadline):
        score = small.score(best)
        return Solution(kept[best], score, min(closed, score, *(part[0] for part in parts[:1])))
    return _finish(small, kept, whole, best, gap, deadline, time_limit)


def _finish(
    choices: Choices,
    kept: np.ndarray,
    relaxed: _Relaxed,
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
        found = _settle(choices.only(still), min(below, float(choices.scores.sum()) or 1.0), gap, deadline)
    except TimeoutError:
        if best is None:
            raise UserError(f"no plan was found in bits.time_limit={time_limit:g} seconds: give more") from None
        return Solution(kept[best], score, relaxed.bound)
    if found is None:
        return None if best is None else Solution(kept[best], score, relaxed.bound)
    bound = max(relaxed.bound, found.bound)  # options were dropped only where no solution below `best` could use them
    if best is None or found.score < score:
        return Solution(kept[still[found.chosen]], found.score, bound)
    return Solution(kept[best], score, bound)


def _normalised(choices: Choices) -> tuple[np.ndarray, Choices | None]:
    """The options worth a look, by index, with costs as shares of the room between the least total and the limit.

    None instead when a limit lies below its least total.
    """
    least = choices.least(choices.costs)  # (L, groups)
    room = choices.limits + np.abs(choices.limits) * _TOLERANCE - least.sum(1)
    if (room < 0).any():
        return np.arange(0), None
    above = choices.costs - least[:, choices.owner]
    shares = above / np.where(room > 0, room, 1)[:, None]
    fitting = np.flatnonzero((above <= room[:, None]).all(0))
    fits = Choices(choices.scores, shares, np.ones(len(room)), choices.owner).only(fitting)
    if len(np.unique(fits.owner)) < choices.num_groups:
        return np.arange(0), None
    worth = _undominated(fits)
    return fitting[worth], fits.only(worth)


def _undominated(choices: Choices) -> np.ndarray:
    """Indices of the options that no other one of their group beats or equals in score and in every cost."""
    values = np.vstack([choices.scores, choices.costs])
    kept = []
    for members in np.split(np.arange(len(choices.owner)), choices.starts()[1:]):
        own = values[:, members]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(0)  # [a, b]: a is no worse than b
        earlier = np.tri(len(members), k=-1, dtype=bool).T
        kept.append(members[~(no_worse & (earlier | ~no_worse.T)).any(0)])
    return np.concatenate(kept)


def _one_each(choices: Choices) -> csr_array:
    """(groups, M): row g sums the options of group g."""
    size = len(choices.owner)
    return csr_array((np.ones(size), (choices.owner, np.arange(size))), shape=(choices.num_groups, size))


def _relax(choices: Choices) -> _Relaxed | None:
    """The linear relaxation; None when nothing fits."""
    unit = choices.scores.max() or 1.0
    limited = {"A_ub": choices.costs * _ROW, "b_ub": choices.limits * _ROW} if len(choices.limits) else {}
    equal = {"A_eq": _one_each(choices), "b_eq": np.ones(choices.num_groups)}
    result = linprog(choices.scores / unit, **limited, **equal)
    if result.status == _NOTHING_FITS:
        return None
    assert result.x is not None, result.message
    proven = [np.maximum(-result.ineqlin.marginals, 0) * unit * _ROW, np.zeros(len(choices.limits))]
    return max((_relaxed_by(choices, multipliers, result.x) for multipliers in proven), key=lambda found: found.bound)


def _relaxed_by(choices: Choices, multipliers: np.ndarray, shares: np.ndarray) -> _Relaxed:
    """What any multipliers μ ≥ 0 prove, however exact the linear solver was."""
    reduced = choices.scores + multipliers @ choices.costs
    least = choices.least(reduced)
    bound = float(least.sum() - multipliers @ choices.limits)
    return _Relaxed(multipliers, shares, reduced - least[choices.owner], bound)


def _split(choices: Choices, relaxed: _Relaxed) -> np.ndarray:
    """The options of the fractional group (of any, if none is) whose cost varies most."""
    members = np.split(np.arange(len(choices.owner)), choices.starts()[1:])
    fractional = [group for group in members if relaxed.shares[group].max() < 1 - 1e-6]
    return max(fractional or members, key=lambda group: float(np.ptp(choices.costs[:, group], axis=1).max(initial=0)))


def _round(choices: Choices, relaxed: np.ndarray) -> np.ndarray | None:
    """A solution near the relaxed one: the largest shares, then the steps that cost least for the room they make."""
    parts = np.split(relaxed, choices.starts()[1:])
    chosen = choices.starts() + [int(part.argmax()) for part in parts]
    while not choices.allow(chosen):
        excess = (choices.costs[:, chosen].sum(1) - choices.limits)[:, None]
        change = choices.costs - choices.costs[:, chosen][:, choices.owner]
        gained = (np.maximum(excess, 0) - np.maximum(excess + change, 0)).sum(0)
        useful = np.flatnonzero(gained > 0)
        if not len(useful):
            return None
        price = (choices.scores - choices.scores[chosen][choices.owner])[useful] / gained[useful]
        step = useful[price.argmin()]
        chosen[choices.owner[step]] = step
    return chosen


def _improve(choices: Choices, chosen: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Changes one or two groups at a time, among the options nearest to the bound, while that lowers the score."""
    tried = np.sort(np.argsort(distance, kind="stable")[:_SWAPS])
    alone = np.eye(len(tried), dtype=bool)  # one change instead of two
    apart = (choices.owner[tried][:, None] != choices.owner[tried]) | alone
    while True:
        chosen_of = chosen[choices.owner[tried]]
        change = choices.scores[tried] - choices.scores[chosen_of]
        extra = choices.costs[:, tried] - choices.costs[:, chosen_of]
        slack = choices.limits - choices.costs[:, chosen].sum(1)
        fits = apart.copy()
        for more, left in zip(extra, slack, strict=True):
            fits &= more[:, None] + np.where(alone, 0, more) <= left
        total = np.where(fits, change[:, None] + np.where(alone, 0, change), np.inf)
        first, second = divmod(int(total.argmin()), len(tried))
        better = chosen.copy()
        better[choices.owner[tried[[first, second]]]] = tried[[first, second]]
        if choices.score(better) >= choices.score(chosen) or not choices.allow(better):
            return chosen
        chosen = better


def _search(choices: Choices, relaxed: _Relaxed, below: float) -> np.ndarray | None:
    """The best solution that scores at most `below` above the bound; empty where none does, None for too many."""
    for part in (below / 16, below / 4, below):  # an optimum near the bound is found in no time
        found = _search_up_to(choices, relaxed.distance, relaxed.multipliers, part)
        if found is None or len(found):
            return found
    return np.arange(0)


def _search_up_to(choices: Choices, distance: np.ndarray, multipliers: np.ndarray, below: float) -> np.ndarray | None:
    """`_search` at one level.

    score − bound = Σ distance + μ·slack, so group after group all partial solutions are kept whose distance, with the
    slack that the groups to come cannot use up, does not exceed `below`.
    """
    groups = [np.flatnonzero((choices.owner == group) & (distance <= below)) for group in range(choices.num_groups)]
    groups.sort(key=lambda members: -np.ptp(choices.costs[:, members], axis=1).sum())
    ends = np.array([[choices.costs[:, m].min(1), choices.costs[:, m].max(1)] for m in groups])  # (groups, 2, L)
    to_come = ends[::-1].cumsum(0)[::-1] - ends
    far, used, trail = np.zeros(1), np.zeros((len(multipliers), 1)), []
    for members, (least, most) in zip(groups, to_come, strict=True):
        far = (far[:, None] + distance[members]).reshape(-1)
        used = (used[:, :, None] + choices.costs[:, members][:, None]).reshape(len(multipliers), -1)
        slack = choices.limits[:, None] - used
        idle = np.maximum(slack - most[:, None], 0)
        alive = np.flatnonzero((slack >= least[:, None]).all(0) & (far + multipliers @ idle <= below))
        if not 0 < len(alive) <= _PARTIAL:
            return None if len(alive) else alive
        far, used = far[alive], used[:, alive]
        trail.append((members, alive))
    last, chosen = int((far + multipliers @ (choices.limits[:, None] - used)).argmin()), []
    for members, alive in reversed(trail):
        last, option = divmod(int(alive[last]), len(members))
        chosen.append(members[option])
    return np.sort(np.array(chosen))


def _settle(choices: Choices, unit: float, gap: float, deadline: float) -> Solution | None:
    """The integer program by HiGHS, with scores in hundredths of `unit`; None when nothing fits.

    HiGHS may overrun a limit by its tolerance: such a solution is cut off, and the search goes on. Raises TimeoutError.
    """
    least = choices.least(choices.scores)
    above = (choices.scores - least[choices.owner]) * (100 / unit)
    rows, upper = csr_array(choices.costs * _ROW), choices.limits * _ROW
    while (left := deadline - time.monotonic()) > 0:
        with _quiet():
            result = milp(
                above,
                integrality=np.ones(len(above)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(_one_each(choices), 1, 1), LinearConstraint(rows, -np.inf, upper)],
                options={"mip_rel_gap": gap, "time_limit": left},
            )
        if result.x is None:
            if result.status == _TIME_IS_UP:
                break
            return None
        chosen = choices.starts() + [int(part.argmax()) for part in np.split(result.x, choices.starts()[1:])]
        if choices.allow(chosen):
            return Solution(chosen, choices.score(chosen), float(least.sum()) + result.mip_dual_bound * unit / 100)
        taken = csr_array((np.ones(len(chosen)), (np.zeros(len(chosen), int), chosen)), shape=(1, len(above)))
        rows, upper = vstack([rows, taken], "csr"), np.append(upper, len(chosen) - 1)
    raise TimeoutError


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lines off standard output that HiGHS prints there past all its options."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C's own buffer, which still holds them
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
