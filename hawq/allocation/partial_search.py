"""The exact search of our own: all partial solutions that the bound leaves open, group after group."""

from __future__ import annotations

import numpy as np

from hawq.allocation.choices import TOLERANCE, Choices
from hawq.allocation.relaxation import Relaxed

_PARTIAL = 3_000  # partial solutions that are kept before the search gives up


def search(choices: Choices, relaxed: Relaxed, below: float) -> np.ndarray | None:
    """(groups,) the best solution that scores at most `below` above the bound, ties decided by the second scores.

    Empty where there is none; None where the search gave up, because too many partial solutions were open.
    """
    for part in (below / 16, below / 4, below):  # an optimum near the bound is found quickly
        found = all_within(choices, relaxed, part * (1 + 1e-9) + TOLERANCE * relaxed.bound)
        if found is None:
            return None
        if len(found[0]):
            return choices.best_of(*found)
    return np.arange(0)


def all_within(choices: Choices, relaxed: Relaxed, below: float) -> tuple[np.ndarray, np.ndarray] | None:
    """All solutions that score at most `below` above the bound; None for too many partial solutions.

    Returns the solutions (K, groups) and how far each scores above the bound (K,).

    score − bound = Σ distance + μ·slack, so group after group all partial solutions are kept whose distance, with the
    slack that the remaining groups cannot use, does not exceed `below`.
    """
    distance, multipliers = relaxed.distance, relaxed.multipliers
    groups = [np.flatnonzero((choices.owner == group) & (distance <= below)) for group in range(choices.num_groups)]
    groups.sort(key=lambda members: -np.ptp(choices.costs[:, members], axis=1).sum())
    ends = np.array([[choices.costs[:, m].min(1), choices.costs[:, m].max(1)] for m in groups])  # (groups, 2, L)
    to_come = ends[::-1].cumsum(0)[::-1] - ends
    far, used, trail = np.zeros(1), np.zeros((len(multipliers), 1)), []
    for members, (least, most) in zip(groups, to_come, strict=True):
        far = (far[:, None] + distance[members]).reshape(-1)
        used = (used[:, :, None] + choices.costs[:, members][:, None]).reshape(len(multipliers), len(far))
        slack = choices.limits[:, None] - used
        idle = np.maximum(slack - most[:, None], 0)
        alive = np.flatnonzero((slack >= least[:, None]).all(0) & (far + multipliers @ idle <= below))
        if not len(alive):
            return np.zeros((0, len(groups)), int), np.zeros(0)
        if len(alive) > _PARTIAL:
            return None
        far, used = far[alive], used[:, alive]
        trail.append((members, alive))
    above = far + multipliers @ (choices.limits[:, None] - used)
    last, chosen = np.arange(len(far)), []
    for members, alive in reversed(trail):
        last, option = np.divmod(alive[last], len(members))
        chosen.append(members[option])
    return np.sort(np.array(chosen).T, axis=1), above
