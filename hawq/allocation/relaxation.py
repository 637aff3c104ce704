"""The linear relaxation of an allocation problem: a lower bound, and solutions near the relaxed one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hawq.allocation.choices import Choices
from hawq.allocation.highs import NOTHING_FITS, ROW, one_each

_SWAPS = 300  # options that are tried in pairs when a solution is improved


@dataclass(frozen=True)
class Relaxed:
    """The linear relaxation: multipliers μ (L,), shares of the options (M,), and what they prove.

    No solution scores less than `bound` = Σ_g min_o (score + μ·cost) − μ·limits, and none with option o less than
    `bound` + `distance`[o]; `distance` is (M,).
    """

    multipliers: np.ndarray
    shares: np.ndarray
    distance: np.ndarray
    bound: float

    def only(self, keep: np.ndarray) -> Relaxed:
        """The same for the options at the indices `keep`."""
        return Relaxed(self.multipliers, self.shares[keep], self.distance[keep], self.bound)


def relax(choices: Choices) -> Relaxed | None:
    """The linear relaxation; None when nothing fits."""
    from scipy.optimize import linprog

    unit = choices.scores.max() or 1.0
    limited = {"A_ub": choices.costs * ROW, "b_ub": choices.limits * ROW} if len(choices.limits) else {}
    equal = {"A_eq": one_each(choices), "b_eq": np.ones(choices.num_groups)}
    result = linprog(choices.scores / unit, **limited, **equal)
    if result.status == NOTHING_FITS:
        return None
    assert result.x is not None, result.message
    proven = [np.maximum(-result.ineqlin.marginals, 0) * unit * ROW, np.zeros(len(choices.limits))]
    return max((_relaxed_by(choices, multipliers, result.x) for multipliers in proven), key=lambda found: found.bound)


def without_limits(choices: Choices) -> Relaxed:
    """What is proven without any multiplier: no solution scores less than the least of each group together."""
    return _relaxed_by(choices, np.zeros(len(choices.limits)), np.zeros(len(choices.owner)))


def _relaxed_by(choices: Choices, multipliers: np.ndarray, shares: np.ndarray) -> Relaxed:
    """What any multipliers μ ≥ 0 prove, however exact the linear solver was."""
    reduced = choices.scores + multipliers @ choices.costs
    least = choices.least(reduced)
    bound = float(least.sum() - multipliers @ choices.limits)
    return Relaxed(multipliers, shares, reduced - least[choices.owner], bound)


def split(choices: Choices, relaxed: Relaxed) -> np.ndarray:
    """Indices of the options of the fractional group (of any group, if none is) whose costs vary most."""
    members = choices.members()
    fractional = [group for group in members if relaxed.shares[group].max() < 1 - 1e-6]
    return max(fractional or members, key=lambda group: float(np.ptp(choices.costs[:, group], axis=1).max(initial=0)))


def rounded(choices: Choices, shares: np.ndarray) -> np.ndarray | None:
    """(groups,) a solution near the relaxed `shares` (M,); None when none was found.

    Takes each group's largest share, then the changes that cost the least score for the excess that they remove.
    """
    parts = np.split(shares, choices.starts()[1:])
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


def improved(choices: Choices, chosen: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(groups,) `chosen` after changing one or two groups at a time, while that lowers the score.

    Only the `_SWAPS` options nearest to the bound, by `distance` (M,), are tried.
    """
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
