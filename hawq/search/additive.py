"""What a score says of changes to a plan, corrected by each change that was measured."""

from __future__ import annotations

import numpy as np

_BLOCK, _OPTION = 1.5, 0.5  # standard deviations of ln(truth / score): shared by a block's options, and of each alone
_INTERACTION = 0.3  # of a measured difference that other blocks' bits may account for
_LEAST = 1e-3  # share of the level below which increases are not told apart
_ROUNDS, _STEP = 20, 1.0  # Gauss–Newton steps at most, and the largest change of ln(truth / score) in one of them
_SETTLED = 1e-3  # a smaller change ends them


class Additive:
    """Increases that add up over the groups, θ = s · exp(x): a score s, and a correction x that measurements teach.

    x is Gaussian with mean 0 at first; options of one group share most of it. It is the most likely one given all
    measured differences between two plans, its spread that of the linearised posterior. Interactions between blocks are
    not modelled: they count as noise of a difference, and the search measures them.

    Args:
        scores: (M,) predicted increases of all options, none negative.
        owner: (M,) group of each option.
        chosen: (groups,) the plan that was measured first.
        level: its measured value, which sets the unit of the scores.
    """

    def __init__(self, scores: np.ndarray, owner: np.ndarray, chosen: np.ndarray, level: float) -> None:
        total = float(scores[chosen].sum())
        unit = level / total if total > 0 else level / max(float(scores.max()), 1e-300)
        floor = _LEAST * max(level, 1e-300) / (int(owner[-1]) + 1)
        self._scores, self._owner, self._level = scores * unit + floor, owner, level
        self._x, self._spread = np.zeros(len(scores)), np.full(len(scores), np.hypot(_BLOCK, _OPTION))
        self._signs: list[np.ndarray] = []  # (M,) of each difference: 1 for options that came, −1 for those that went
        self._differences: list[float] = []
        self._noises: list[float] = []

    @property
    def increases(self) -> np.ndarray:
        """(M,): the increases as far as they are known."""
        return self._scores * np.exp(self._x)

    def changes(self, chosen: np.ndarray, hope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """For each option (M,), put in place of the chosen one of its group: the expected change, and a hopeful one.

        The hopeful one has a rise smaller, or a fall larger, by `hope` standard deviations of ln(truth).
        """
        theta, present = self.increases, chosen[self._owner]
        change = theta - theta[present]
        larger = np.where(theta > theta[present], np.arange(len(theta)), present)
        return change, change * np.exp(np.where(change > 0, -hope, hope) * self._spread[larger])

    def observe(self, before: np.ndarray, after: np.ndarray, difference: float, error: float) -> None:
        """Takes in that `after` measured `difference` more than `before`, with its standard error; (groups,) each."""
        signs, moved = np.zeros(len(self._x)), before != after
        signs[after[moved]], signs[before[moved]] = 1.0, -1.0
        self._signs.append(signs)
        self._differences.append(difference)
        self._noises.append(error**2 + (_INTERACTION * difference) ** 2 + (_LEAST * self._level) ** 2)
        self._fit()

    def _fit(self) -> None:
        """Gauss–Newton steps to the most likely x, in the space of the measured differences (n,)."""
        signs, noise = np.array(self._signs), np.diag(self._noises)
        for _ in range(_ROUNDS):
            slopes = signs * self.increases  # (n, M)
            spread = self._prior(slopes)
            missing = np.array(self._differences) - slopes.sum(1) + slopes @ self._x
            weights = np.linalg.solve(slopes @ spread.T + noise, spread)  # (n, M)
            step = missing @ weights - self._x
            largest = float(np.abs(step).max(initial=0.0))
            self._x = self._x + step * min(1.0, _STEP / max(largest, 1e-300))
            if largest < _SETTLED:
                break
        known = (weights * spread).sum(0)
        self._spread = np.sqrt(np.maximum(_BLOCK**2 + _OPTION**2 - known, 0.0))

    def _prior(self, slopes: np.ndarray) -> np.ndarray:
        """(n, M): slopes (n, M) times the covariance of x before any measurement."""
        starts = np.searchsorted(self._owner, np.arange(int(self._owner[-1]) + 1))
        shared = np.add.reduceat(slopes, starts, axis=1)[:, self._owner]
        found: np.ndarray = _BLOCK**2 * shared + _OPTION**2 * slopes
        return found
