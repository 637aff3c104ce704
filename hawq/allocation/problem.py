"""The allocation problem: which bits each block may have, their scores and costs, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hawq.allocation.allocator import make_plan
from hawq.allocation.choices import Choices
from hawq.allocation.limits import Limit
from hawq.allocation.solver import minimise
from hawq.errors import UserError
from hawq.records import BitPlan, Block, LimitUse, Precision, Sensitivity

Options = Mapping[str, Sequence[Precision]]
Score = Callable[[Block, Precision], float]
Increase = Callable[[str, Block, Precision], float]  # by a score of that name


@dataclass(frozen=True)
class Group:
    """Blocks that share their bits (mostly a single one), and the bits they may have, fewest bits first."""

    blocks: tuple[Block, ...]
    options: tuple[Precision, ...]


def make_groups(blocks: Sequence[Block], options: Options, tied: Sequence[Sequence[str]] = ()) -> tuple[Group, ...]:
    """Groups in network order: tied blocks together, all others alone.

    Args:
        blocks: of the network; those with the same `tie_group` are tied.
        options: block name → bits it may have.
        tied: further lists of tied blocks, by name.

    Raises:
        UserError: a name in `tied` that is unknown or listed twice, or tied blocks with no bits in common.
    """
    group_of = {block.name: f"group {block.tie_group}" if block.tie_group else block.name for block in blocks}
    named = [name for names in tied for name in names]
    wrong = sorted({name for name in named if name not in group_of or named.count(name) > 1})
    if wrong:
        raise UserError(f"tied names {wrong}, unknown or more than once: the blocks are {sorted(group_of)}")
    group_of |= {name: f"tied {number}" for number, names in enumerate(tied) for name in names}
    members: dict[str, list[Block]] = {}
    for block in blocks:
        members.setdefault(group_of[block.name], []).append(block)
    groups = []
    for together in members.values():
        common = set.intersection(*(set(options[block.name]) for block in together))
        if not common:
            raise UserError(f"blocks {[block.name for block in together]} are tied, but have no allowed bits in common")
        ordered = sorted(common, key=lambda precision: (precision.weight_bits, precision.activation_bits))
        groups.append(Group(tuple(together), tuple(ordered)))
    return tuple(groups)


@dataclass(frozen=True)
class Problem:
    """Groups with their options, and the limits on all plans."""

    groups: tuple[Group, ...]
    limits: tuple[Limit, ...]

    def optimum(
        self,
        sensitivity: Sensitivity,
        increase: Increase,
        method: str,
        score: str,
        gap: float,
        time_limit: float,
    ) -> BitPlan:
        """The plan with the least predicted increase, among these the one with the least plain error, and its gap.

        Args:
            sensitivity: of the blocks.
            increase: of the loss, predicted by a score for a block at given bits.
            method: the plan's name in tables.
            score: that decides; between plans that it does not tell apart the plain error does, so that they use their
                budget.
            gap: relative distance from the optimum at which the search stops.
            time_limit: seconds.

        Raises:
            UserError: no plan meets all limits, or a score is not finite.
        """
        solution = minimise(self.scored(increase, score), gap, time_limit)
        if solution is None:
            self.check(time_limit)
            raise UserError("no plan meets all limits together")
        precisions = self.plan_at(solution.chosen)
        return make_plan(
            sensitivity,
            precisions,
            method,
            score=score,
            objective=solution.score,
            gap=solution.gap,
            limits=self.uses(precisions),
        )

    def plan_at(self, chosen: Sequence[int] | np.ndarray) -> dict[str, Precision]:
        """Block name → bits, from the index (groups,) of each group's option among all options."""
        options = [option for group in self.groups for option in group.options]
        return {
            block.name: options[place]
            for group, place in zip(self.groups, chosen, strict=True)
            for block in group.blocks
        }

    def uses(self, plan: Mapping[str, Precision]) -> tuple[LimitUse, ...]:
        """How much of each limit a plan uses."""
        pairs = self._pairs(plan)
        return tuple(limit.use((max if limit.is_peak else sum)(limit.cost(*p) for p in pairs)) for limit in self.limits)

    def scored(self, increase: Increase, score: str) -> Choices:
        """The problem in bare numbers, with a score as scores, and the plain error, where it is known, to break ties.

        Raises UserError for a score that is not finite, or not known.
        """
        choices = self.choices(partial(increase, score))
        try:
            return replace(choices, seconds=self.choices(partial(increase, "error")).scores)
        except UserError:  # a table from elsewhere may come without it
            return choices

    def choices(self, score: Score) -> Choices:
        """The problem in bare numbers. Raises UserError for a score that is not finite."""
        options = self._options()
        owner = np.repeat(np.arange(len(self.groups)), [len(group.options) for group in self.groups])
        scores = np.array([_finite_score(group.blocks, option, score) for group, option in options])
        return Choices(
            scores,
            np.array([self._costs(limit) for limit in self.limits]).reshape(len(self.limits), len(owner)),
            np.array([0.0 if limit.is_peak else limit.total for limit in self.limits]),
            owner,
        )

    def _options(self) -> list[tuple[Group, Precision]]:
        return [(group, option) for group in self.groups for option in group.options]

    def _costs(self, limit: Limit) -> list[float]:
        """(M,) cost of each option; for a peak 0 within it and 1 beyond, so that a limit of 0 forbids the latter."""
        if limit.is_peak:
            return [float(self._own(limit, *pair) > limit.total * (1 + 1e-12)) for pair in self._options()]
        return [self._own(limit, *pair) for pair in self._options()]

    @staticmethod
    def _own(limit: Limit, group: Group, option: Precision) -> float:
        return float((max if limit.is_peak else sum)(limit.cost(block, option) for block in group.blocks))

    def reach(self, limit: Limit) -> tuple[float, float]:
        """The least and the largest total of one limit over all plans."""
        costs = [[self._own(limit, group, option) for option in group.options] for group in self.groups]
        together = max if limit.is_peak else sum
        return together(map(min, costs)), together(map(max, costs))

    def check(self, time_limit: float = 60.0) -> None:
        """Raises UserError when the limits cannot be met, one alone or all together, with the feasible range of each.

        `time_limit` is in seconds.
        """
        for limit in self.limits:
            least, _ = self.reach(limit)
            if least > limit.total * (1 + 1e-12) or limit.total < 0:
                raise UserError(
                    f"{limit} cannot be met: with the given candidates this network reaches "
                    f"{self._range(limit)}; give a target in that range"
                )
        if minimise(self.choices(lambda block, precision: 0.0), 0.0, time_limit) is None:
            raise UserError(
                f"{' and '.join(map(str, self.limits))} cannot be met together: "
                + "; ".join(self._within_others(limit, time_limit) for limit in self.limits)
            )

    def _range(self, limit: Limit) -> str:
        ends = sorted(limit.value(total) for total in self.reach(limit))
        return f"{ends[0]:.6g} to {ends[1]:.6g} {limit.unit}"

    def _within_others(self, limit: Limit, time_limit: float) -> str:
        """How far a limit can be met while the others hold, and on its own."""
        others = Problem(self.groups, tuple(other for other in self.limits if other is not limit))
        alone = f"alone this network reaches {self._range(limit)}"
        if limit.is_peak:
            return f"for {limit.field} {alone}"
        best = minimise(others.choices(limit.cost), 0.0, time_limit)
        if best is None:
            return f"without {limit.field} the others still cannot be met ({alone})"
        return f"with the others {limit.field} reaches {limit.value(best.score):.6g} {limit.unit} at best ({alone})"

    def _pairs(self, plan: Mapping[str, Precision]) -> list[tuple[Block, Precision]]:
        return [(block, plan[block.name]) for group in self.groups for block in group.blocks]


def _finite_score(blocks: Sequence[Block], option: Precision, score: Score) -> float:
    total = 0.0
    for block in blocks:
        value = score(block, option)
        if not np.isfinite(value):
            raise UserError(
                f"block {block.name!r} scores {value} at {option.weight_bits} weight bits, because its curvature or "
                "its quantisation error is not finite: run the analysis again, or correct the file"
            )
        total += value
    return total
