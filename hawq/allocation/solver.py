"""One choice for each group, least total score, under several linear limits: an integer program, solved to a proof."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from hawq.errors import UserError

_TOLERANCE = 1e-12  # relative: a limit that was computed in floating point may miss its own plan by a rounding
_ROW = 1e4  # what HiGHS sees for 1, so that its feasibility tolerance of 1e-6 is far below any real excess
_TIME_IS_UP = 1  # status of SciPy's milp
_SWAPS = 600  # options that are tried in pairs when a solution is improved
_PARTIAL = 10_000  # partial solutions that the search keeps before it leaves the rest to HiGHS


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


def minimise(choices: Choices, gap: float = 0.0, time_limit: float = 60.0) -> Solution | None:
    """min Σ score over one option a group, s.t. Σ cost ≤ limit for every limit; None when nothing fits.

    Options that another one beats in every respect fall away first. With the multipliers μ of the linear relaxation,
    Σ_g min_o (score + μ·cost) − μ·limits is a lower bound, and a rounded, improved solution tells which options
    cannot be part of a better one. HiGHS settles what is left. Stops at the relative `gap`, or after `time_limit`
    seconds with the best solution so far. Raises UserError when the time is up before there is any.
    """
    deadline = time.monotonic() + time_limit
    kept, small = _normalised(choices)
    if small is None:
        return None
    multipliers, relaxed = _relaxation(small)
    if relaxed is None:
        return None
    reduced = small.scores + multipliers @ small.costs
    distance = reduced - small.least(reduced)[small.owner]  # how far the bound rises when this option is taken
    bound = max(float(small.least(reduced).sum() - multipliers.sum()), float(small.least(small.scores).sum()))
    first = _round(small, relaxed)
    best = None if first is None else _solution(small, _improve(small, first, distance), bound)
    if best and best.score - bound <= gap * best.score:
        return _at(best, kept)
    below = np.inf if best is None else (best.score - bound) * (1 + 1e-9)
    for part in (below / 16, below / 4, below) if best else ():  # an optimum near the bound is found in no time
        near = _search(small, distance, multipliers, part)
        if near is None:
            break
        if len(near):
            exact = _solution(small, near, 0.0)
            return _at(Solution(near, exact.score, exact.score), kept)
    still = np.flatnonzero(distance <= below)
    try:
        found = _settle(small.only(still), min(below, float(small.scores.sum()) or 1.0), gap, deadline)
    except TimeoutError:
        if best is None:
            raise UserError(f"no plan was found in bits.time_limit={time_limit:g} seconds: give more") from None
        found = None
    if found is None or (best and best.score <= found.score):
        # nothing better was found; options were dropped only where no solution below `best` could use them
        return best and _at(Solution(best.chosen, best.score, max(bound, found.bound if found else bound)), kept)
    return _at(Solution(still[found.chosen], found.score, max(bound, found.bound)), kept)


def _solution(choices: Choices, chosen: np.ndarray, bound: float) -> Solution:
    return Solution(chosen, float(choices.scores[chosen].sum()), bound)


def _at(solution: Solution, indices: np.ndarray) -> Solution:
    return Solution(indices[solution.chosen], solution.score, solution.bound)


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


def _relaxation(choices: Choices) -> tuple[np.ndarray, np.ndarray | None]:
    """Multipliers μ ≥ 0 (L,) and the solution in shares of options (M,), or None when nothing fits."""
    unit = choices.scores.max() or 1.0
    limited = {"A_ub": choices.costs * _ROW, "b_ub": choices.limits * _ROW} if len(choices.limits) else {}
    equal = {"A_eq": _one_each(choices), "b_eq": np.ones(choices.num_groups)}
    result = linprog(choices.scores / unit, **limited, **equal)
    if result.x is None:
        return np.zeros(len(choices.limits)), None
    return np.maximum(-result.ineqlin.marginals, 0) * unit * _ROW, result.x


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
    same_group = choices.owner[tried][:, None] == choices.owner[tried]
    while True:
        chosen_of = chosen[choices.owner[tried]]
        change = choices.scores[tried] - choices.scores[chosen_of]
        extra = choices.costs[:, tried] - choices.costs[:, chosen_of]
        slack = choices.limits - choices.costs[:, chosen].sum(1)
        fits = ~same_group | np.eye(len(tried), dtype=bool)
        for more, left in zip(extra, slack, strict=True):
            fits &= more[:, None] + np.where(np.eye(len(tried), dtype=bool), 0, more) <= left
        total = np.where(fits, change[:, None] + np.where(np.eye(len(tried), dtype=bool), 0, change), np.inf)
        first, second = divmod(int(total.argmin()), len(tried))
        better = chosen.copy()
        better[choices.owner[tried[[first, second]]]] = tried[[first, second]]
        if total[first, second] >= 0 or choices.scores[better].sum() >= choices.scores[chosen].sum():
            return chosen
        if not choices.allow(better):
            return chosen
        chosen = better


def _search(choices: Choices, distance: np.ndarray, multipliers: np.ndarray, below: float) -> np.ndarray | None:
    """The best solution whose score lies at most `below` above the bound; empty where none does, None for too many.

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
            return _solution(choices, chosen, float(least.sum()) + result.mip_dual_bound * unit / 100)
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
