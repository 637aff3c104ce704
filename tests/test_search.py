"""Searches for plans by measurement, on objectives whose best plan is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hawq.allocation import IntegerProgram
from hawq.allocation.limits import AT_LEAST
from hawq.errors import UserError
from hawq.records import Block, Precision
from hawq.search.additive import Additive
from hawq.search.haq import Haq
from hawq.search.layer_facts import LayerFacts
from hawq.search.objective import Objective
from hawq.search.plans import Plan, Plans
from hawq.search.random_search import RandomSearch
from hawq.search.refining import Found, refined

PARTS = (8, 8, 16)


def blocks_of(seed: int, number: int) -> list[Block]:
    rng = np.random.default_rng(seed)
    return [
        Block(
            f"b{i}", (f"b{i}.conv",), *(int(n) for n in rng.integers(5, 90, 3)), tie_group="t" if i in (1, 3) else None
        )
        for i in range(number)
    ]


class Toy:
    """Σ c_i 4^−w_i + d_i 4^−a_i over the blocks, times a factor of each image: a separable objective without noise in
    its order, or with noise, or with an interaction of neighbours.
    """

    def __init__(self, blocks: list[Block], seed: int, noise: float = 0.0, interaction: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.blocks, self.calls, self.most = blocks, 0, 10**9
        self.costs = 10 ** rng.uniform(-1, 1, (2, len(blocks)))
        self.image = rng.lognormal(0, 0.3, sum(PARTS))
        self.noise, self.interaction = noise, interaction

    def value(self, plan: Mapping[str, Precision]) -> float:
        errors = [
            c * 4.0 ** -plan[b.name].weight_bits + d * 4.0 ** -plan[b.name].activation_bits
            for b, c, d in zip(self.blocks, *self.costs, strict=True)
        ]
        return sum(errors) + self.interaction * sum(a * b for a, b in itertools.pairwise(errors))

    def __call__(self, plan: Mapping[str, Precision]) -> Iterator[Tensor]:
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        rng = np.random.default_rng(abs(hash(tuple(plan.values()))) % 2**32)
        values = self.value(plan) * (self.image + self.noise * rng.standard_normal(len(self.image)))
        yield from torch.tensor(values).split(list(PARTS))


class Kept:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return self.state

    def save(self, state: dict[str, Any]) -> None:
        self.state = {"plans": list(state["plans"]), "values": [v.clone() for v in state["values"]]}


def scores_of(plans: Plans, value: Callable[[Block, Precision], float]) -> np.ndarray:
    return np.array([sum(value(b, o) for b in group.blocks) for group in plans.problem.groups for o in group.options])


def all_plans(plans: Plans) -> Iterator[np.ndarray]:
    for chosen in itertools.product(*plans.members):
        if plans.allows(np.array(chosen)):
            yield np.array(chosen)


def fair(block: Block, precision: Precision) -> float:
    """A score that knows nothing of the blocks."""
    return 4.0**-precision.weight_bits


@pytest.mark.parametrize("seed", range(6))
def test_refinement_finds_the_best_plan_of_a_separable_objective(seed: int) -> None:
    blocks = blocks_of(seed, 5)
    plans = Plans(IntegerProgram(4.0, "average_bits", candidates=(2, 3, 4, 6), activations=8).problem(blocks, None))
    toy = Toy(blocks, seed)
    start = plans.plan(plans.cheapest)
    with Objective(toy, PARTS, 150) as objective:
        found = refined(objective, plans, start, scores_of(plans, fair))
    best = min(toy.value(plans.plan(chosen)) for chosen in all_plans(plans))
    assert toy.value(found.plan) == pytest.approx(best, rel=1e-9)
    assert found.changes > 0 and objective.evaluations <= 150


SPACES = {
    "two limits": {"limits": {"bops": 60_000.0}, "activations": 4},
    "mixed activations": {"activations": "mixed", "activation_candidates": (2, 4), "limits": {"a_comp": 9.0}},
    "a peak": {"activations": "mixed", "activation_candidates": (2, 8), "limits": {"peak_activation_bytes": 40.0}},
    "tied and overridden": {"tied": (["b0", "b2"],), "overrides": {"b4": [2, 8]}, "activations": 8},
}


def check_within(allocator: IntegerProgram, blocks: list[Block], plan: Plan) -> None:
    """The limits, candidates and ties of an allocator, in exact fractions."""
    problem = allocator.problem(blocks, None)
    for limit in problem.limits:
        costs = [Fraction(limit.cost(block, plan[block.name])) for block in blocks]
        total = max(costs) if limit.is_peak else sum(costs)
        assert total <= Fraction(limit.total) * (1 + Fraction(1, 10**12)), limit
        assert limit.unit not in AT_LEAST or limit.value(float(total)) >= limit.target * (1 - 1e-12)
    for group in problem.groups:
        bits = {plan[block.name] for block in group.blocks}
        assert len(bits) == 1 and bits <= set(group.options)


@pytest.mark.parametrize("space", SPACES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), interaction=st.sampled_from([0.0, 50.0]), noise=st.sampled_from([0.0, 0.2]))
def test_no_measured_plan_is_ever_over_a_limit(space: str, seed: int, interaction: float, noise: float) -> None:
    blocks = blocks_of(seed, 6)
    allocator = IntegerProgram(4.5, "average_bits", candidates=(2, 3, 5, 8), **SPACES[space])
    try:
        allocator.check(blocks)
    except UserError:
        return
    plans = Plans(allocator.problem(blocks, None))
    toy = Toy(blocks, seed, noise, interaction)
    with Objective(toy, PARTS, 20) as objective:
        found = refined(objective, plans, plans.plan(plans.cheapest), scores_of(plans, fair))
        before, after = objective.values(plans.plan(plans.cheapest)), objective.values(found.plan)
    for one in objective.history:
        check_within(allocator, blocks, one.plan)
    assert float(after.mean()) <= float(before.mean())
    rng = np.random.default_rng(seed)
    for _ in range(5):
        drawn = plans.random(rng)
        check_within(allocator, blocks, plans.plan(drawn))
        check_within(allocator, blocks, plans.plan(plans.shrunk(np.array([m[-1] for m in plans.members]))))
        assert (plans.filled(drawn, rng) == drawn).all()  # it uses its budget up


def test_a_swap_needs_more_than_two_standard_errors() -> None:
    blocks = blocks_of(0, 4)
    plans = Plans(IntegerProgram(4.0, "average_bits", activations=8).problem(blocks, None))
    start = plans.plan(plans.cheapest)

    def measure(gain: float) -> Callable[[Mapping[str, Precision]], list[Tensor]]:
        noise = torch.linspace(-1, 1, 32, dtype=torch.float64)  # its mean is 0, its standard error about 0.1
        error = float(noise.std()) / 32**0.5
        better = 3 - noise - gain * error
        return lambda plan: [torch.full((32,), 3.0, dtype=torch.float64) if dict(plan) == start else better]

    for gain, changed in ((1.9, False), (2.1, True)):
        with Objective(measure(gain), (32,), 20) as objective:
            assert (refined(objective, plans, start, scores_of(plans, fair)).changes > 0) is changed


@pytest.mark.parametrize("seed", range(6))
def test_no_swap_raises_the_second_values(seed: int) -> None:
    blocks = blocks_of(seed, 5)
    plans = Plans(IntegerProgram(4.0, "average_bits", activations=8).problem(blocks, None))
    start = plans.plan(plans.random(np.random.default_rng(seed)))
    judge, other = Toy(blocks, seed), Toy(blocks, seed + 100)

    def found(second: Callable[[Plan], Iterator[Tensor]]) -> Found:
        def measure(plan: Plan) -> Iterator[Tensor]:
            for parts in zip(judge(plan), second(plan), strict=True):
                yield torch.stack(parts, 1)

        with Objective(measure, PARTS, 60) as objective:
            return refined(objective, plans, start, scores_of(plans, fair))

    assert found(judge).changes > 0
    assert found(lambda plan: (10 - part for part in judge(plan))) == Found(start, 0)
    assert other.value(found(other).plan) <= other.value(start)


def test_values_kept_without_second_ones_are_measured_again() -> None:
    blocks = blocks_of(0, 4)
    plans = Plans(IntegerProgram(4.0, "average_bits", activations=8).problem(blocks, None))
    plan, toy, kept = plans.plan(plans.cheapest), Toy(blocks, 0), Kept()
    with Objective(toy, PARTS, 5, checkpoint=kept) as objective:
        values = objective.values(plan)
    assert toy.calls == 1 and torch.equal(objective.second_values(plan), values)
    for old in (False, True):
        if old:
            kept.state = {"plans": kept.state["plans"], "values": [values]}  # as they were before
        with Objective(toy, PARTS, 5, checkpoint=kept) as objective:
            assert torch.equal(objective.values(plan), values)
        assert toy.calls == 1 + old


def test_where_all_plans_are_alike_the_plan_stays() -> None:
    blocks = blocks_of(0, 4)
    plans = Plans(IntegerProgram(4.0, "average_bits", activations=8).problem(blocks, None))
    start = plans.plan(plans.cheapest)
    with Objective(lambda plan: [torch.ones(16)], (16,), 20) as objective:
        assert refined(objective, plans, start, scores_of(plans, fair)) == Found(start, 0)


def test_a_hopeless_plan_is_not_measured_on_all_images() -> None:
    blocks = blocks_of(1, 4)
    toy = Toy(blocks, 1)
    plans = Plans(IntegerProgram(5.0, "average_bits", activations=8).problem(blocks, None))
    with Objective(toy, PARTS, 60) as objective:
        refined(objective, plans, plans.plan(plans.cheapest), scores_of(plans, fair))
    seen = {one.images for one in objective.history}
    assert PARTS[0] in seen and sum(PARTS) in seen


def searches(seed: int) -> dict[str, Callable[[Objective, Plans], Found]]:
    """Every search, as a function of objective and plans."""
    return {
        "refinement": lambda objective, plans: refined(
            objective, plans, plans.plan(plans.cheapest), scores_of(plans, fair)
        ),
        "random": lambda objective, plans: RandomSearch(seed=seed).search(objective, plans, ()),
        "haq": lambda objective, plans: Haq(evaluations=14, warmup=8, seed=seed).search(
            objective, plans, [LayerFacts(False, 3, 8, 1, 3, 5 + at, 64) for at in range(len(plans.members))]
        ),
    }


@pytest.mark.parametrize("name", searches(0))
@pytest.mark.parametrize("killed_at", [1, 5, 8])
def test_a_killed_search_goes_on_to_the_same_end(name: str, killed_at: int) -> None:
    blocks = blocks_of(2, 5)
    plans = Plans(IntegerProgram(4.0, "average_bits", candidates=(2, 3, 4, 6), activations=8).problem(blocks, None))

    def run(most_calls: int, checkpoint: Kept | None) -> tuple[Found, list[Any], int]:
        toy = Toy(blocks, 2, noise=0.05, interaction=20.0)
        toy.most = most_calls
        with Objective(toy, PARTS, 25, checkpoint=checkpoint, save_every_seconds=0.0) as objective:
            return searches(3)[name](objective, plans), objective.history, toy.calls

    whole = run(10**9, None)
    again = run(10**9, None)
    assert again == whole  # deterministic
    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        run(killed_at, kept)
    assert len(kept.state["plans"]) == killed_at
    resumed = run(10**9, kept)
    assert resumed[:2] == whole[:2]
    assert resumed[2] == whole[2] - killed_at


def test_an_objective_counts_each_plan_once_and_refuses_more() -> None:
    blocks = blocks_of(0, 3)
    toy = Toy(blocks, 0)
    one, two = ({b.name: Precision(bits, 8) for b in blocks} for bits in (2, 4))
    with Objective(toy, PARTS, 1) as objective:
        assert torch.equal(objective.values(one), objective.values(one))
        assert (toy.calls, objective.evaluations, objective.left) == (1, 1, 0)
        with pytest.raises(UserError, match="all 1 evaluations are used up"):
            objective.values(two)
    with pytest.raises(UserError, match="at least two images"):
        Objective(toy, (1,), 1)
    with pytest.raises(UserError, match="not finite"):
        Objective(lambda plan: [torch.full((4,), float("nan"))], (4,), 1).values(one)


def test_an_early_loser_can_be_measured_in_full_later() -> None:
    blocks = blocks_of(0, 3)
    toy = Toy(blocks, 0)
    plan = {b.name: Precision(2, 8) for b in blocks}
    with Objective(toy, PARTS, 5) as objective:
        assert len(objective.race(plan, lambda values: True)) == PARTS[0]
        assert objective.best is None
        assert len(objective.values(plan)) == sum(PARTS)
        assert objective.evaluations == 1 and objective.best.plan == plan


def test_measurements_correct_a_score() -> None:
    owner, scores = np.repeat([0, 1], 3), np.array([9.0, 3.0, 1.0, 9.0, 3.0, 1.0])
    model = Additive(scores, owner, np.array([1, 4]), level=6.0)
    assert model.increases == pytest.approx(scores, rel=0.01)
    for _ in range(4):
        model.observe(np.array([1, 4]), np.array([2, 4]), -0.2, 0.001)  # group 0 matters ten times less
    change, hopeful = model.changes(np.array([1, 4]))
    assert change[2] == pytest.approx(-0.2, rel=0.3)
    assert change[5] == pytest.approx(-2.0, rel=0.05)
    assert change[0] < 2.0  # what one option taught counts for the others of its group
    assert (hopeful <= change + 1e-12).all()


def test_a_start_over_its_limits_or_of_other_bits_is_refused() -> None:
    blocks = blocks_of(0, 3)
    plans = Plans(IntegerProgram(4.0, "average_bits", candidates=(2, 4, 8), activations=8).problem(blocks, None))
    assert not plans.allows(plans.chosen({b.name: Precision(8, 8) for b in blocks}))
    with pytest.raises(UserError, match="not among the candidates"):
        plans.chosen({b.name: Precision(3, 8) for b in blocks})
    with pytest.raises(UserError, match="cannot be met"):
        Plans(replace(IntegerProgram(), target=1.0, unit="average_bits").problem(blocks, None))
