"""Scores joined by "+": the geometric mean of several tables."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from runs import compose_here
from sensitivities import full_sensitivity, random_sensitivity

from hawq import IntegerProgram, allocate
from hawq.errors import UserError
from hawq.experiment.config.build import build_settings
from hawq.experiment.config.demands import check_demands
from hawq.records import ACTIVATIONS, WEIGHTS, Prediction, ScoreTable

BITS = (2, 3, 4, 8)


def table(score: str, seed: int, names: list[str], least: float = 0.1) -> ScoreTable:
    rng = random.Random(seed)

    def rows() -> dict[str, dict[int, Prediction]]:
        return {name: {bits: Prediction(rng.uniform(least, 9), rng.uniform(0, 0.1)) for bits in BITS} for name in names}

    return ScoreTable(score, rows(), rows())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scores", [("kl", "trace"), ("kl", "output_shift", "quadratic")], ids="+".join)
def test_it_is_the_geometric_mean_and_its_error_is_that_of_independent_factors(scores, seed):
    sensitivity = random_sensitivity(seed, 4)
    names = [block.name for block in sensitivity.blocks]
    tables = [table(score, seed + 10 * place, names) for place, score in enumerate(scores)]
    joint = sensitivity.with_scores(tables).table("+".join(scores))
    rng = random.Random(seed)
    for kind, name, bits in itertools.product((WEIGHTS, ACTIVATIONS), names, BITS):
        factors = [one.of(kind)[name][bits] for one in tables]
        found = joint.of(kind)[name][bits]
        assert found.value == pytest.approx(math.prod(one.value for one in factors) ** (1 / len(factors)))
        drawn = [
            math.prod(max(rng.gauss(one.value, one.error), 1e-9) for one in factors) ** (1 / len(factors))
            for _ in range(300)
        ]
        mean = sum(drawn) / len(drawn)
        spread = math.sqrt(sum((value - mean) ** 2 for value in drawn) / len(drawn))
        small = all(one.error < 0.1 * one.value for one in factors)
        assert not small or found.error == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_what_one_score_holds_for_harmless_is(value):
    sensitivity = random_sensitivity(0, 2)
    names = [block.name for block in sensitivity.blocks]
    harmless = ScoreTable("kl", {name: {2: Prediction(value, 1.0)} for name in names})
    joint = sensitivity.with_scores([harmless, table("trace", 1, names)]).table("kl+trace")
    assert joint.weights["b0"] == {2: Prediction(0.0)} and joint.activations == {}


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_chosen_by_it_as_by_any_score(seed):
    sensitivity = full_sensitivity(seed, 3)
    names = [block.name for block in sensitivity.blocks]
    sensitivity = sensitivity.with_scores([table("kl", seed, names), table("trace", seed + 1, names)])
    program = IntegerProgram(target=8, candidates=BITS, score="kl+trace")
    plan = allocate(sensitivity, program)
    joint = sensitivity.table("kl+trace").weights
    sizes = [block.num_weights for block in sensitivity.blocks]

    def loss(bits):
        return sum(joint[name][each].value for name, each in zip(names, bits, strict=True))

    fitting = [
        bits
        for bits in itertools.product(BITS, repeat=3)
        if sum(size * each for size, each in zip(sizes, bits, strict=True)) * 8 <= 32 * sum(sizes)
    ]
    assert plan.score == "kl+trace"
    assert loss([plan.precisions[name].weight_bits for name in names]) == pytest.approx(min(map(loss, fitting)))


@pytest.mark.parametrize("score", ["kl+nothing", "kl+kl", "kl+", "+trace", "auto+kl", "kl+error+kl"])
def test_what_cannot_be_joined_is_told(score):
    with pytest.raises(ValueError, match=r"score=.*join some of eigenvalue, trace"):
        IntegerProgram(score=score)


def test_a_part_that_was_not_found_is_named():
    with pytest.raises(UserError, match="no kl"):
        random_sensitivity(0, 2).table("kl+eigenvalue")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("bits.score=kl+trace", "solver=lanczos"), "no trace, which bits.score=kl.trace needs.*solver=trace"),
        (("bits.score=kl+eigenvalue", "solver=none"), "no eigenvalue"),
        (("bits.score=kl+relative_error", "bits.activations=mixed", "analysis.activations=true"), "activations"),
        (("bits.score=kl+output_shift", "analysis.loss=distillation"), "output_shift"),
        (("bits.score=kl+learned_steps", "quantizer=uniform"), "quantizer=uniform trains no steps"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_the_analysis_will_not_find_is_told_before(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_demands(build_settings(compose_here(*overrides)))
