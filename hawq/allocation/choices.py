"""An allocation problem in bare numbers: one option per group, linear costs and limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-12  # relative: a limit that was computed in floating point may miss its own plan by a rounding error


@dataclass(frozen=True)
class Choices:
    """Options of all groups, one group after the other.

    Args:
        scores: (M,) of the options, finite, none negative.
        costs: (L, M), of each option in each limit.
        limits: (L,), the largest allowed totals.
        owner: (M,), the group of each option: 0, …, 0, 1, …, 1, …; every group owns at least one.
        seconds: (M,) second scores, finite, none negative; they decide between solutions of the same score. None where
            any of these will do.
    """

    scores: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    owner: np.ndarray
    seconds: np.ndarray | None = None

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.owner[-1]) + 1

    def starts(self) -> np.ndarray:
        """(groups,): the index of each group's first option."""
        return np.searchsorted(self.owner, np.arange(self.num_groups))

    def members(self) -> list[np.ndarray]:
        """For each group the indices of its options."""
        return np.split(np.arange(len(self.owner)), self.starts()[1:])

    def least(self, values: np.ndarray) -> np.ndarray:
        """(…, M) → (…, groups): the least value among each group's options."""
        return np.minimum.reduceat(values, self.starts(), axis=-1)

    def only(self, keep: np.ndarray) -> Choices:
        """The problem with the options at the indices `keep` alone."""
        seconds = None if self.seconds is None else self.seconds[keep]
        return Choices(self.scores[keep], self.costs[:, keep], self.limits, self.owner[keep], seconds)

    def score(self, chosen: np.ndarray) -> float:
        """Σ of the scores of the options at the indices `chosen`, one per group."""
        return float(self.scores[chosen].sum())

    def second(self, chosen: np.ndarray) -> float:
        """Σ of the second scores of the options at the indices `chosen`; 0 without any."""
        return 0.0 if self.seconds is None else float(self.seconds[chosen].sum())

    def better(self, chosen: np.ndarray, other: np.ndarray) -> bool:
        """Whether `chosen` scores less than `other`, or the same up to rounding with a smaller second score."""
        first = _sign(self.scores[chosen] - self.scores[other])
        if first or self.seconds is None:
            return first < 0
        return _sign(self.seconds[chosen] - self.seconds[other]) < 0

    def best_of(self, solutions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The best of (K, groups) solutions, given (K,) their scores up to a constant."""
        least = solutions[scores.argmin()]
        if self.seconds is None:
            return least
        ties = solutions[_signs(self.scores[solutions] - self.scores[least]) <= 0]
        return ties[self.seconds[ties].sum(1).argmin()]

    def allow(self, chosen: np.ndarray) -> bool:
        """Whether the options at the indices `chosen`, one per group, stay within all limits."""
        return bool((self.costs[:, chosen].sum(1) <= self.limits).all())


def _signs(differences: np.ndarray) -> np.ndarray:
    """(…, groups) → (…): the sign of each sum, 0 where it is a rounding error of its own terms.

    Terms that are equal on both sides cancel exactly, so that small scores count next to large ones.
    """
    total, size = differences.sum(-1), np.abs(differences).sum(-1)
    return np.where(np.abs(total) > TOLERANCE * size, np.sign(total), 0.0)


def _sign(differences: np.ndarray) -> float:
    return float(_signs(differences))


@dataclass(frozen=True)
class Solution:
    """The index of each group's option, the sum of their scores, and a proven lower bound on the best possible sum."""

    chosen: np.ndarray
    score: float
    bound: float

    @property
    def gap(self) -> float:
        """(score − bound) / score; 0 for a proven optimum."""
        return max(self.score - self.bound, 0.0) / self.score if self.score > 0 else 0.0


def normalised(choices: Choices) -> tuple[np.ndarray, Choices | None]:
    """The options that an optimum needs, with costs as shares of the room between least total and limit.

    Returns their indices (M',) and the smaller problem; None instead of the problem when a limit is below its least
    total, or when a group has no option that fits. Between options of the same score the cheaper one is kept, whatever
    their second scores: `hidden_ties` tells whether that matters.
    """
    least = choices.least(choices.costs)  # (L, groups)
    room = choices.limits + np.abs(choices.limits) * TOLERANCE - least.sum(1)
    if (room < 0).any():
        return np.arange(0), None
    above = choices.costs - least[:, choices.owner]
    shares = above / np.where(room > 0, room, 1)[:, None]
    fitting = np.flatnonzero((above <= room[:, None]).all(0))
    fits = Choices(choices.scores, shares, np.ones(len(room)), choices.owner, choices.seconds).only(fitting)
    if len(np.unique(fits.owner)) < choices.num_groups:
        return np.arange(0), None
    worth = _undominated(fits)
    return fitting[worth], fits.only(worth)


def hidden_ties(choices: Choices, kept: np.ndarray) -> bool:
    """Whether an option that is not `kept` has the score of a kept one of its group, and a smaller second score."""
    if choices.seconds is None:
        return False
    dropped = np.setdiff1d(np.arange(len(choices.owner)), kept)
    same = (choices.owner[dropped][:, None] == choices.owner[kept]) & (
        choices.scores[dropped][:, None] == choices.scores[kept]
    )
    return bool((same & (choices.seconds[dropped][:, None] < choices.seconds[kept])).any())


def _undominated(choices: Choices) -> np.ndarray:
    """Indices of the options that no other one of their group beats or equals in score and in every cost."""
    values = np.vstack([choices.scores, choices.costs])
    kept = []
    for members in choices.members():
        own = values[:, members]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(0)  # [a, b]: a is no worse than b
        earlier = np.tri(len(members), k=-1, dtype=bool).T
        kept.append(members[~(no_worse & (earlier | ~no_worse.T)).any(0)])
    return np.concatenate(kept)
