"""The exact search of our own: all partial solutions that the bound leaves open, group after group."""

from __future__ import annotations

import numpy as np

from hawq.allocation.choices import Choices
from hawq.allocation.relaxation import Relaxed

_PARTIAL = 3_000  # partial solutions that are kept before the search gives up


def search(choices: Choices, relaxed: Relaxed, below: float) -> np.ndarray | None:
    """(groups,) the best solution that scores at most `below` above the bound.

    Empty where there is none; None where the search gave up, because too many partial solutions were open.
    """
    for part in (below / 16, below / 4, below):  # an optimum near the bound is found quickly
        found = _search_up_to(choices, relaxed.distance, relaxed.multipliers, part)
        if found is None or len(found):
            return found
    return np.arange(0)


def _search_up_to(choices: Choices, distance: np.ndarray, multipliers: np.ndarray, below: float) -> np.ndarray | None:
    """`search` at one level.

    score − bound = Σ distance + μ·slack, so group after group all partial solutions are kept whose distance, with the
    slack that the remaining groups cannot use, does not exceed `below`.
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
