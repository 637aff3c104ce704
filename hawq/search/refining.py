"""Refinement: bits are swapped within the limits wherever measured images show that the whole plan gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from hawq.allocation.solver import minimise
from hawq.search.additive import Additive
from hawq.search.objective import Objective
from hawq.search.plans import Plan, Plans
from hawq.trials import paired

STANDARD_ERRORS = 2.0  # that a gain must exceed
_SURELY = 2.0  # standard errors by which a plan is worse that is not measured on all images
_TRIED = 200  # options that rise, and as many that fall, of which pairs are formed
_PATIENCE = 4  # swaps between two plans that change many blocks at once, after one of these has failed
_GAP = 1e-3  # relative, of such a plan
_HOPES = (1.0, 2.0, 4.0)  # standard deviations by which predictions may be wrong, tried in turn once nothing is left


@dataclass(frozen=True)
class Found:
    """What a search ends with: a plan, and how often a better one replaced the one before."""

    plan: Plan
    changes: int


def refined(
    objective: Objective, plans: Plans, start: Plan, scores: np.ndarray, standard_errors: float = STANDARD_ERRORS
) -> Found:
    """The plan after all swaps that the objective allows to be measured.

    A swap gives one or two groups other bits, and then more bits to others as long as that is expected to help; at
    times it is the optimum under all increases as they are known by then. The one with the most hopeful prediction
    (`Additive`) is measured next: first on a part of the images, and no further where it is worse by more than two
    standard errors. It replaces the plan only where its gain over all images, paired image by image, exceeds two
    standard errors. Ends where no swap is hopeful, or no evaluation is left.

    Args:
        objective: measures plans; nothing in the search is random.
        plans: that may be proposed.
        start: within all limits.
        scores: (M,) predicted increases of all options, in any unit.
        standard_errors: that a gain must exceed, instead of two.

    Raises:
        UserError: `start` is not among the plans.
    """
    chosen = plans.chosen(start)
    values = objective.values(start)
    model = Additive(scores, plans.choices.owner, chosen, float(values.mean()))
    swaps, changes = _Swaps(plans, objective, model), 0
    while objective.left > 0:
        proposed = swaps.next(chosen)
        if proposed is None:
            break
        found = objective.race(plans.plan(proposed), partial(_is_worse, values))
        gain, error = paired(values[: len(found)], found)
        better = len(found) == len(values) and gain > standard_errors * error
        if better and (harm := _harm(objective, plans.plan(chosen), plans.plan(proposed))):
            better, (gain, error) = False, harm
        model.observe(chosen, proposed, -gain, error)
        swaps.told(better)
        if better:
            chosen, values, changes = proposed, found, changes + 1
    return Found(plans.plan(chosen), changes)


def _harm(objective: Objective, before: Plan, after: Plan) -> tuple[float, float] | None:
    """Gain of the second values and its standard error, where these rise from one measured plan to the other."""
    gain, error = paired(objective.second_values(before), objective.second_values(after))
    return (gain, error) if gain < 0 else None


def _is_worse(best: Tensor, part: Tensor) -> bool:
    """Whether a plan is worse by more than two standard errors on the images that were measured (n,)."""
    if len(part) < 2:
        return False
    gain, error = paired(best[: len(part)], part)
    return gain + _SURELY * error < 0


class _Swaps:
    """What to measure next, the most hopeful change first."""

    def __init__(self, plans: Plans, objective: Objective, model: Additive) -> None:
        self._plans, self._objective, self._model = plans, objective, model
        self._jumped, self._wait = False, 0

    def next(self, chosen: np.ndarray) -> np.ndarray | None:
        """(groups,): a plan that was not measured yet, within all limits; None where none is hopeful."""
        waits, self._wait = self._wait > 0, max(self._wait - 1, 0)
        change, _ = self._model.changes(chosen)
        jump = None if waits else self._optimum(change)
        self._jumped = jump is not None
        return jump if jump is not None else self._swap(chosen)

    def _swap(self, chosen: np.ndarray) -> np.ndarray | None:
        """The most hopeful plan with one or two changes, filled up; where none is left, the most hopeful one of all."""
        for hope in _HOPES:
            change, hopeful = self._model.changes(chosen, hope)
            for first, second in self._pairs(chosen, hopeful):
                swapped = chosen.copy()
                swapped[self._plans.choices.owner[[first, second]]] = [first, second]
                for plan in (self._filled(swapped, chosen, change), swapped):
                    if self._is_new(plan):
                        return plan
            most = self._optimum(hopeful)
            if most is not None:
                return most
        return None

    def told(self, better: bool) -> None:
        """Whether the last proposal was taken."""
        if self._jumped and not better:
            self._wait = _PATIENCE

    def _is_new(self, plan: np.ndarray) -> bool:
        return not self._objective.knows(self._plans.plan(plan)) and self._plans.allows(plan)

    def _optimum(self, change: np.ndarray) -> np.ndarray | None:
        """The plan with the least sum of changes (M,); None where it was measured, or its sum is not below 0."""
        choices = self._plans.choices
        solution = minimise(replace(choices, scores=change - choices.least(change)[choices.owner]), _GAP)
        if solution is None or not self._is_new(solution.chosen):
            return None
        return solution.chosen if change[solution.chosen].sum() < 0 else None

    def _pairs(self, chosen: np.ndarray, hopeful: np.ndarray) -> Iterator[tuple[int, int]]:
        """Changes of one or two groups that stay within the limits, the most hopeful first, as long as there is hope.

        A change of one group alone is a pair of the same option twice.
        """
        choices = self._plans.choices
        others = np.setdiff1d(np.arange(len(hopeful)), chosen)
        ordered = others[np.argsort(hopeful[others], kind="stable")]
        gains, losses = ordered[hopeful[ordered] < 0], ordered[hopeful[ordered] >= 0]
        tried = np.concatenate([gains[:_TRIED], losses[:_TRIED]])
        if not len(tried):
            return
        present = chosen[choices.owner[tried]]
        alone = np.eye(len(tried), dtype=bool)
        fits = (choices.owner[tried][:, None] != choices.owner[tried]) | alone
        extra = choices.costs[:, tried] - choices.costs[:, present]
        for more, left in zip(extra, self._plans.slack(chosen), strict=True):
            fits &= more[:, None] + np.where(alone, 0, more) <= left
        total = np.where(fits, hopeful[tried][:, None] + np.where(alone, 0, hopeful[tried]), np.inf)
        total[np.tril_indices(len(tried), -1)] = np.inf
        for place in np.argsort(total, axis=None, kind="stable"):
            if not total.flat[place] < 0:
                return
            first, second = divmod(int(place), len(tried))
            yield int(tried[first]), int(tried[second])

    def _filled(self, swapped: np.ndarray, chosen: np.ndarray, change: np.ndarray) -> np.ndarray:
        """The swap, with more bits for other groups as long as there is room and they are expected to help."""
        choices, filled = self._plans.choices, swapped.copy()
        while True:
            free = filled[choices.owner] == chosen[choices.owner]  # groups that the swap leaves as they are
            more = choices.costs - choices.costs[:, filled[choices.owner]]
            fits = free & (change < 0) & (more <= self._plans.slack(filled)[:, None]).all(0)
            if not fits.any():
                return filled
            best = int(np.where(fits, change, np.inf).argmin())
            filled[choices.owner[best]] = best
