"""Published precision orders, against brute force over all lists."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from sensitivities import full_sensitivity, made_sensitivity, random_sensitivity

from hawq.allocation import HawqV3, Monotone
from hawq.records import MEASURED, WEIGHTS, Estimate, Sensitivity

CANDIDATES = (2, 3, 5, 8)
NUM_BLOCKS = 4


def with_traces(sensitivity):
    """The same blocks whose traces are not in the order of their eigenvalues."""
    values = np.random.default_rng(len(sensitivity.rows)).uniform(-1, 9, len(sensitivity.rows))
    rows = [
        replace(row, trace=Estimate(value, 0, 1, True)) for row, value in zip(sensitivity.rows, values, strict=True)
    ]
    return Sensitivity(tuple(rows), "power", 1, 0.0)


def total_bits(sensitivity, bits):
    return sum(block.num_weights * width for block, width in zip(sensitivity.blocks, bits, strict=True))


def objective(sensitivity, bits, score):
    pairs = zip(sensitivity.blocks, bits, strict=True)
    return sum(sensitivity.predicted(score, block, WEIGHTS, width).value for block, width in pairs)


def keeps_order(scores, bits, order):
    """Bits never increase from a larger score to a smaller one (the other way round if ascending)."""
    sign = -1 if order == "ascending" else 1
    pairs = itertools.permutations(zip(scores, bits, strict=True), 2)
    return all(a[0] <= b[0] or sign * a[1] >= sign * b[1] for a, b in pairs)


def free_scores(sensitivity, bits, score):
    free = [(row, width) for row, width in zip(sensitivity.rows, bits, strict=True) if row.block.fixed_bits is None]
    return [sensitivity.rank(score, row.block) for row, _ in free], [width for _, width in free]


@pytest.mark.parametrize("order", ["descending", "ascending"])
@pytest.mark.parametrize("score", ["eigenvalue", "trace"])
@pytest.mark.parametrize("fixed_bits", [{}, {0: 8, 2: 4}], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force(seed, fixed_bits, score, order):
    sensitivity = with_traces(random_sensitivity(seed, NUM_BLOCKS, fixed_bits))
    num_weights = sum(block.num_weights for block in sensitivity.blocks)
    ends = [[fixed_bits.get(i, width) for i in range(NUM_BLOCKS)] for width in (2, 8)]
    least, most = (total_bits(sensitivity, bits) / num_weights for bits in ends)
    target = least + (most - least) * np.random.default_rng(seed).random()
    allocator = Monotone(target, "average_bits", CANDIDATES, score=score, order=order)
    plan = allocator.allocate(sensitivity)
    choices = [CANDIDATES if (width := fixed_bits.get(i)) is None else (width,) for i in range(NUM_BLOCKS)]

    def allowed(bits):
        fits = total_bits(sensitivity, bits) <= target * num_weights * (1 + 1e-12)
        return fits and keeps_order(*free_scores(sensitivity, bits, score), order)

    bits = tuple(plan.weight_bits().values())
    assert allowed(bits) and plan.gap == 0
    best = min(objective(sensitivity, other, score) for other in itertools.product(*choices) if allowed(other))
    assert plan.objective == pytest.approx(objective(sensitivity, bits, score))
    assert plan.objective == pytest.approx(best, rel=1e-12)
    assert plan.limits[0].slack >= -1e-12


def test_random_order_is_monotone_along_a_seeded_shuffle():
    sensitivity = made_sensitivity([9.0, 5.0, 2.0, 1.0], [10, 10, 10, 10])
    plans = [Monotone(4, "average_bits", order="random", seed=seed).allocate(sensitivity) for seed in (0, 0, 1, 2, 3)]
    assert plans[0] == plans[1]
    assert len({tuple(plan.weight_bits().values()) for plan in plans}) > 1
    assert {plan.method for plan in plans} == {"HAWQ-V1 random order"}


def test_many_blocks_in_no_time():
    """50 layers and 4 widths have 23,426 monotone lists (V2), 100 layers and 6 widths 96 million: none is listed."""
    assert math.comb(50 + 3, 3) == 23_426
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e3), np.log(2e6), 100)).astype(int).tolist()
    sensitivity = made_sensitivity((10 ** rng.uniform(-2, 2, 100)).tolist(), sizes)
    started = time.process_time()
    plan = Monotone(3.3, "average_bits", (2, 3, 4, 5, 6, 8)).allocate(sensitivity)
    assert time.process_time() - started < 3  # 0.3 s; the margin is for slow machines
    scores, bits = free_scores(sensitivity, plan.weight_bits().values(), "eigenvalue")
    assert keeps_order(scores, bits, "descending")
    assert 3.29 < plan.cost.average_bits <= 3.3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit": "bops"}, "'bops' is unknown: give w_comp, average_bits, uniform_bits, bytes"),
        ({"order": "sideways"}, "'sideways'.*descending, ascending, random"),
        ({"score": "gut"}, "'gut'.*eigenvalue, trace"),
        ({"activations": 16}, "activations=16"),
        ({"candidates": (0,)}, r"candidates=\[0\]"),
        ({"target": -2}, "target=-2"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Monotone(**values)


@pytest.mark.parametrize("allocator", [Monotone(5, "average_bits"), HawqV3(unit="bytes")], ids=["monotone", "v3"])
@pytest.mark.parametrize("known", ["eigenvalue", "trace", "proxy"])
def test_auto_weighs_with_what_the_analysis_has_found(allocator, known):
    sensitivity = full_sensitivity(3, 5, overhead_bytes=40)
    rows = [replace(row, **{**dict.fromkeys(MEASURED), known: row.eigenvalue}) for row in sensitivity.rows]
    only = sensitivity.with_rows(rows)
    plan = replace(allocator, score="auto").allocate(only)
    assert plan == replace(allocator, score=known).allocate(only)
    assert plan.score == known


@pytest.mark.parametrize("order", ["descending", "ascending"])
@pytest.mark.parametrize("score", ["eigenvalue", "trace", "error"])
@pytest.mark.parametrize("seed", range(8))
def test_ties_in_sensitivity_and_in_score(seed, score, order):
    """Small whole numbers: blocks of equal S are free of each other; plans of equal Σ Ω differ by the plain error."""
    sensitivity = full_sensitivity(seed, NUM_BLOCKS)
    num_weights = sum(block.num_weights for block in sensitivity.blocks)
    target = 2 + 6 * np.random.default_rng(seed).random()
    plan = Monotone(target, "average_bits", CANDIDATES, score=score, order=order).allocate(sensitivity)

    def value(bits):
        return objective(sensitivity, bits, score), objective(sensitivity, bits, "error")

    allowed = [
        bits
        for bits in itertools.product(CANDIDATES, repeat=NUM_BLOCKS)
        if total_bits(sensitivity, bits) <= target * num_weights * (1 + 1e-12)
        and keeps_order(*free_scores(sensitivity, bits, score), order)
    ]
    bits = tuple(plan.weight_bits().values())
    assert bits in allowed
    assert value(bits) == pytest.approx(min(map(value, allowed)), rel=1e-12, abs=1e-12)
