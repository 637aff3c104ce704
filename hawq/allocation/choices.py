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
    """

    scores: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    owner: np.ndarray

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
        return Choices(self.scores[keep], self.costs[:, keep], self.limits, self.owner[keep])

    def score(self, chosen: np.ndarray) -> float:
        """Σ of the scores of the options at the indices `chosen`, one per group."""
        return float(self.scores[chosen].sum())

    def allow(self, chosen: np.ndarray) -> bool:
        """Whether the options at the indices `chosen`, one per group, stay within all limits."""
        return bool((self.costs[:, chosen].sum(1) <= self.limits).all())


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
    """The options that can be part of an optimum, with costs as shares of the room between least total and limit.

    Returns their indices (M',) and the smaller problem; None instead of the problem when a limit is below its least
    total, or when a group has no option that fits.
    """
    least = choices.least(choices.costs)  # (L, groups)
    room = choices.limits + np.abs(choices.limits) * TOLERANCE - least.sum(1)
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
    for members in choices.members():
        own = values[:, members]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(0)  # [a, b]: a is no worse than b
        earlier = np.tri(len(members), k=-1, dtype=bool).T
        kept.append(members[~(no_worse & (earlier | ~no_worse.T)).any(0)])
    return np.concatenate(kept)
