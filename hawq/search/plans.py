"""The plans that a search may propose: one option per group of tied blocks, within all limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import fsum

import numpy as np

from hawq.allocation.choices import TOLERANCE
from hawq.allocation.problem import Problem
from hawq.allocation.solver import minimise
from hawq.errors import UserError
from hawq.records import ACTIVATIONS, WEIGHTS, Precision

Plan = dict[str, Precision]


class Plans:
    """All plans of a problem, each as (groups,) indices into the options of all groups, one group after the other.

    Args:
        problem: groups, their options and the limits.

    Raises:
        UserError: no plan meets all limits.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.choices = problem.choices(lambda block, precision: 0.0)
        self.members = self.choices.members()
        self.options = [option for group in problem.groups for option in group.options]
        self._room = self.choices.limits + np.abs(self.choices.limits) * TOLERANCE
        solution = minimise(self.choices)
        if solution is None:
            problem.check()
            raise UserError("no plan meets all limits together")
        self.cheapest = solution.chosen
        """Some plan that meets all limits."""

    def plan(self, chosen: np.ndarray) -> Plan:
        """Block name → bits, in network order."""
        return self.problem.plan_at(chosen)

    def chosen(self, plan: Mapping[str, Precision]) -> np.ndarray:
        """The indices of a plan. Raises UserError for one that gives a block bits it may not have."""
        found = []
        for members, group in zip(self.members, self.problem.groups, strict=True):
            wanted = {plan.get(block.name) for block in group.blocks}
            place = next((at for at, option in zip(members, group.options, strict=True) if wanted == {option}), None)
            if place is None:
                names = ", ".join(block.name for block in group.blocks)
                raise UserError(f"the plan gives {names} bits that are not among the candidates: give one that does")
            found.append(place)
        return np.array(found)

    def allows(self, chosen: np.ndarray) -> bool:
        """Whether a plan meets every limit, by exact sums of the costs."""
        return all(fsum(costs[chosen]) <= room for costs, room in zip(self.choices.costs, self._room, strict=True))

    def slack(self, chosen: np.ndarray) -> np.ndarray:
        """(L,): what is left of each limit."""
        return self._room - self.choices.costs[:, chosen].sum(1)

    def levels(self, group: int) -> tuple[list[int], list[int]]:
        """The weight bits and the activation bits that a group may have, fewest first."""
        options = self.problem.groups[group].options
        return sorted({o.weight_bits for o in options}), sorted({o.activation_bits for o in options})

    def at(self, group: int, precision: Precision) -> int | None:
        """The index of one option of a group; None where it has no such option."""
        options = self.problem.groups[group].options
        return int(self.members[group][options.index(precision)]) if precision in options else None

    def below(self, group: int, option: int, kind: str) -> int | None:
        """The index of the next option with fewer bits of a kind ("weights" or "activations"); None where none is."""
        weights, activations = self.levels(group)
        now = self.options[option]
        levels, bits = (weights, now.weight_bits) if kind == WEIGHTS else (activations, now.activation_bits)
        if bits == levels[0]:
            return None
        fewer = levels[levels.index(bits) - 1]
        step = Precision(fewer, now.activation_bits) if kind == WEIGHTS else Precision(now.weight_bits, fewer)
        return self.at(group, step)

    def shrunk(self, chosen: np.ndarray, order: Sequence[int] | None = None) -> np.ndarray:
        """The plan with fewer bits until it meets all limits (HAQ, 1811.08886, §3.4).

        Again and again from the last group to the first, the bits of each go down by one step, of its activations where
        they are mixed, then of its weights, until the limits hold. Where that ends above one, `cheapest` is returned.

        Args:
            chosen: any plan.
            order: of the groups, instead of last to first.
        """
        chosen = chosen.copy()
        walk = list(range(len(self.members) - 1, -1, -1) if order is None else order)
        moved = True
        while moved and not self.allows(chosen):
            moved = False
            for group, kind in product(walk, (ACTIVATIONS, WEIGHTS)):
                below = self.below(group, int(chosen[group]), kind)
                if below is not None:
                    chosen[group], moved = below, True
                    if self.allows(chosen):
                        return chosen
        return chosen if self.allows(chosen) else self.cheapest.copy()

    def filled(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The plan with more bits in random places until no group can have any more."""
        chosen = chosen.copy()
        while True:
            slack = self.slack(chosen)
            present = chosen[self.choices.owner]
            more = self.choices.costs - self.choices.costs[:, present]
            fits = np.flatnonzero((more <= slack[:, None]).all(0))
            higher = [place for place in fits.tolist() if self._is_above(place, int(present[place]))]
            if not higher:
                return chosen
            place = int(rng.choice(higher))
            raised = chosen.copy()
            raised[self.choices.owner[place]] = place
            if not self.allows(raised):
                return chosen
            chosen = raised

    def _is_above(self, option: int, other: int) -> bool:
        a, b = self.options[option], self.options[other]
        return a != b and a.weight_bits >= b.weight_bits and a.activation_bits >= b.activation_bits

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """A random plan that meets all limits and uses them up: uniform bits, lowered and raised in random places."""
        drawn = np.array([rng.choice(members) for members in self.members])
        order = rng.permutation(len(self.members)).tolist()
        return self.filled(self.shrunk(drawn, order), rng)
