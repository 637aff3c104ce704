"""The frontier and the confidence of a plan."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sensitivities import full_sensitivity, made_sensitivity, random_sensitivity

from hawq.allocation import IntegerProgram, Monotone, confidence, frontier, is_proven
from hawq.records import Estimate, Prediction, ScoreTable, Sensitivity

ALLOCATORS = {
    "w_comp": IntegerProgram(8, "w_comp"),
    "bytes": IntegerProgram(300, "bytes"),
    "bops": IntegerProgram(800, "bops", {"average_bits": 6.0}),
    "mixed": IntegerProgram(5, "average_bits", {"a_comp": 6.0}, activations="mixed"),
    "V1": Monotone(5, "average_bits"),
    "V2": Monotone(8, "w_comp", score="trace"),
}


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
def test_every_point_can_be_asked_for(allocator):
    sensitivity = full_sensitivity(3, 8, overhead_bytes=40)
    front = frontier(sensitivity, allocator, 12)
    assert (front.unit, front.score) == (allocator.unit, sensitivity.score_name(allocator.score))
    targets = [point.target for point in front.points]
    assert len(targets) >= 5 and targets == sorted(targets, reverse=allocator.unit == "w_comp")
    for point in front.points:
        plan = replace(allocator, target=point.target).allocate(sensitivity)
        assert point.objective * (1 - point.gap) <= plan.objective * (1 + 1e-9) <= point.objective * (1 + 2e-9)
        assert point.gap <= 1e-3
    assert [p.objective for p in front.points] == sorted((p.objective for p in front.points), reverse=True)


def test_budgets_that_other_limits_rule_out_are_left_out(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("device,block,bits,ms\n" + "".join(f"odd,b{i},{b},{10 - b}\n" for i in (0, 1) for b in (2, 8)))
    sensitivity = made_sensitivity([1.0, 2.0], [10, 10])
    allocator = IntegerProgram(8, "average_bits", {"latency_ms": 10.0}, (2, 8), latency=str(path))
    assert [point.target for point in frontier(sensitivity, allocator, 9).points] == [5.0, 8.0]


def with_errors(sensitivity, error):
    rows = [replace(r, eigenvalue=Estimate(r.eigenvalue.value, error(r), 9, True)) for r in sensitivity.rows]
    return sensitivity.with_rows(rows)


def test_confidence_names_the_blocks_that_would_change():
    """b0 and b1 are alike but for λ: 1.0 ± 0.1 against 0.95. b2 leads both by far."""
    alike = made_sensitivity([50.0, 1.0, 0.95], [10, 100, 100])
    allocator = IntegerProgram(6.5, "average_bits", overrides={"b1": [4, 8], "b2": [4, 8]})
    plan = allocator.allocate(alike)
    assert plan.weight_bits() == {"b0": 8, "b1": 8, "b2": 4}
    sure = confidence(with_errors(alike, lambda row: 0.01), allocator, plan, 8)
    assert (sure.draws, sure.changes, sure.proven) == (8, {}, True)
    unsure = confidence(with_errors(alike, lambda row: 0.1), allocator, plan, 40)
    assert set(unsure.changes) == {"b1", "b2"}
    assert unsure.changes["b1"].keys() == {"8/4", "4/4"} == unsure.changes["b2"].keys()
    assert sum(unsure.changes["b1"].values()) == 40
    assert unsure.changes["b1"]["4/4"] == unsure.changes["b2"]["8/4"] == pytest.approx(10, abs=8)


def test_confidence_needs_errors():
    sensitivity = random_sensitivity(0, 4)
    allocator = IntegerProgram(5, "average_bits")
    assert confidence(sensitivity, allocator, allocator.allocate(sensitivity), 5) is None


@pytest.mark.parametrize("seed", range(30))
def test_proven_means_that_no_end_of_the_intervals_prefers_another_plan(seed):
    """For a given other plan the worst curvature lies at the ends, so all of them are tried."""
    sensitivity, allocator = random_sensitivity(seed, 4), IntegerProgram(4.5, "average_bits", candidates=(2, 4, 8))
    errors = np.random.default_rng(seed).uniform(0, 0.6, 4)
    sensitivity = with_errors(sensitivity, lambda row: row.eigenvalue.value * errors[sensitivity.rows.index(row)])
    plan = allocator.allocate(sensitivity)
    found = set()
    for signs in itertools.product((-1, 1), repeat=4):
        ends = [
            replace(r, eigenvalue=replace(r.eigenvalue, value=r.eigenvalue.value + sign * r.eigenvalue.error))
            for r, sign in zip(sensitivity.rows, signs, strict=True)
        ]
        best = allocator.allocate(sensitivity.with_rows(ends))
        mine = sum(max(r.eigenvalue.value, 0) * r.weight_errors[plan.weight_bits()[r.block.name]] for r in ends)
        found.add(best.objective < mine * (1 - 1e-9))
    assert is_proven(sensitivity, allocator, plan) is (found == {False})


def test_errors_that_are_not_one_factor_are_moved_one_by_one():
    """b0 at 4 and 8 bits: 0.5 ± 0.2 and 0.4 ± 0.1; b1 loses 0.3 ± 0.01 with 4 bits. By one factor 8 bits never pay."""
    rows = made_sensitivity([0.0, 0.0], [10, 10], [{4: 2.0, 8: 1.0}] * 2).rows
    b0 = {4: Prediction(0.5, 0.2), 8: Prediction(0.4, 0.1)}
    b1 = {4: Prediction(0.3, 0.01), 8: Prediction(0.0)}
    allocator = IntegerProgram(6, "average_bits", candidates=(4, 8), score="given")
    for one_factor in (True, False):
        table = ScoreTable("given", {"b0": b0, "b1": b1}, one_factor=one_factor)
        sensitivity = Sensitivity(rows, "elsewhere", 1, 0.0, scores=(table,))
        plan = allocator.allocate(sensitivity)
        assert plan.weight_bits() == {"b0": 4, "b1": 8} and plan.objective == 0.5
        assert is_proven(sensitivity, allocator, plan) is one_factor
        found = confidence(sensitivity, allocator, plan, 40)
        assert found.proven is (True if one_factor else None if found.changes else False)
