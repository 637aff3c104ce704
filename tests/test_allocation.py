"""Bit allocation, against brute force."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensitivities import full_sensitivity, made_sensitivity, plan_of, random_sensitivity

from hawq.allocation import Allocation, HawqV3, IntegerProgram, Manual, Monotone, UniformBits, allocate, direct_baseline
from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.records import Precision, to_dict


def objective(sensitivity, bits):
    pairs = zip(sensitivity.blocks, bits, strict=True)
    return sum(sensitivity.predicted("eigenvalue", block, "weights", width).value for block, width in pairs)


UNITS_OF_A_PLAN = {
    "w_comp": lambda cost: cost.w_comp,
    "average_bits": lambda cost: cost.average_bits,
    "bytes": lambda cost: cost.packed_bytes,
    "bops": lambda cost: cost.bops,
    "a_comp": lambda cost: cost.a_comp,
    "activation_bits": lambda cost: 32 / cost.a_comp,
    "peak_activation_bytes": lambda cost: cost.peak_activation_bytes,
}
AT_LEAST = ("w_comp", "a_comp")


def met(cost, targets):
    """Whether a cost, by the definitions in `hawq.costs`, meets all targets."""
    signs = {unit: -1 if unit in AT_LEAST else 1 for unit in targets}
    return all(
        signs[u] * UNITS_OF_A_PLAN[u](cost) <= signs[u] * goal * (1 + signs[u] * 1e-9) for u, goal in targets.items()
    )


def all_plans(sensitivity, bit_widths, activations, tied):
    """(Σ Ω by its definition, cost) of every assignment."""
    names = [block.name for block in sensitivity.blocks]
    for bits in itertools.product(itertools.product(bit_widths, activations), repeat=len(names)):
        precisions = {name: Precision(*pair) for name, pair in zip(names, bits, strict=True)}
        if all(precisions[a] == precisions[b] for a, b in tied):
            yield precisions, plan_cost(sensitivity.blocks, precisions, sensitivity.overhead_bytes)


def scored(sensitivity, precisions, score, mixed):
    total = 0.0
    for row in sensitivity.rows:
        bits = precisions[row.block.name]
        curvature = 1.0 if score == "error" else getattr(row, score).value
        scale = row.block.num_weights if score == "trace" else 1
        total += max(curvature, 0) / scale * row.weight_errors[bits.weight_bits]
        if mixed:
            average = 1.0 if score == "error" else row.activation_trace.value / row.block.num_activations
            total += average * row.activation_errors[bits.activation_bits]
    return total


def plain_error(sensitivity, precisions):
    """‖Q(W) − W‖² and ‖Q(a) − a‖² of all blocks."""
    rows = [(row, precisions[row.block.name]) for row in sensitivity.rows]
    return sum(r.weight_errors[bits.weight_bits] + r.activation_errors[bits.activation_bits] for r, bits in rows)


@settings(max_examples=1000, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(1, 3),
    bit_widths=st.sets(st.integers(2, 8), min_size=1, max_size=3),
    activations=st.sets(st.integers(2, 8), min_size=1, max_size=2),
    units=st.lists(st.sampled_from(sorted(UNITS_OF_A_PLAN)), min_size=1, max_size=3, unique=True),
    # in thousandths: a limit closer to a plan than the tolerance of `met` would be met by one and missed by the other
    places=st.lists(st.integers(0, 1000).map(lambda place: place / 1000), min_size=3, max_size=3),
    score=st.sampled_from(["eigenvalue", "trace", "error"]),
    tie=st.booleans(),
)
def test_mixed_equals_brute_force(seed, num_blocks, bit_widths, activations, units, places, score, tie):
    """Any limits together, ties in scores and costs, tied blocks: the least Σ Ω, or a refusal where nothing fits."""
    sensitivity = full_sensitivity(seed, num_blocks, overhead_bytes=100)
    tied = [("b0", "b1")] if tie and num_blocks > 1 else []
    plans = list(all_plans(sensitivity, sorted(bit_widths), sorted(activations), tied))
    targets = {}
    for unit, place in zip(units, places, strict=False):
        values = [UNITS_OF_A_PLAN[unit](cost) for _, cost in plans]
        targets[unit] = min(values) + place * (max(values) - min(values))
    allocator = IntegerProgram(
        targets[units[0]],
        units[0],
        {unit: targets[unit] for unit in units[1:]},
        tuple(bit_widths),
        tied=tuple(list(pair) for pair in tied),
        activations="mixed",
        activation_candidates=tuple(activations),
        score=score,
    )
    met_by = [bits for bits, cost in plans if met(cost, targets)]
    fitting = [scored(sensitivity, bits, score, True) for bits in met_by]
    if not fitting:
        with pytest.raises(ValueError, match="cannot be met"):
            allocator.allocate(sensitivity)
        return
    plan = allocator.allocate(sensitivity)
    assert met(plan.cost, targets) and all(use.slack >= -1e-9 * use.target for use in plan.limits)
    assert [use.reached for use in plan.limits] == pytest.approx([UNITS_OF_A_PLAN[unit](plan.cost) for unit in units])
    assert plan.objective == pytest.approx(min(fitting), rel=1e-9, abs=1e-12)
    assert scored(sensitivity, plan.precisions, score, True) == pytest.approx(plan.objective, rel=1e-9, abs=1e-12)
    assert plan.gap == pytest.approx(0, abs=1e-9)
    assert all(plan.precisions[a] == plan.precisions[b] for a, b in tied)
    ties = [bits for bits, score in zip(met_by, fitting, strict=True) if score <= min(fitting) * (1 + 1e-11)]
    least = min(plain_error(sensitivity, bits) for bits in ties)
    assert plain_error(sensitivity, plan.precisions) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("unit", ["w_comp", "bytes", "bops"])
@pytest.mark.parametrize("seed", range(4))
def test_a_relaxed_limit_is_never_worse(seed, unit):
    sensitivity = full_sensitivity(seed, 12, overhead_bytes=50)
    uniform = [UniformBits(width, width).allocate(sensitivity).cost for width in range(2, 9)]
    plans = [IntegerProgram(UNITS_OF_A_PLAN[unit](cost), unit).allocate(sensitivity) for cost in uniform]
    objectives = [plan.objective for plan in plans]
    assert objectives == sorted(objectives, reverse=True) and objectives[0] > objectives[-1]
    both = IntegerProgram(UNITS_OF_A_PLAN[unit](uniform[2]), unit, {"bops": uniform[1].bops}).allocate(sensitivity)
    assert both.objective >= objectives[2]


def test_mixed_is_no_worse_than_the_published_orders():
    for seed in range(5):
        sensitivity = random_sensitivity(seed, 10)
        free = IntegerProgram(3.4, "average_bits").allocate(sensitivity).objective
        orders = [
            Monotone(3.4, "average_bits", order=order).allocate(sensitivity) for order in ("descending", "ascending")
        ]
        assert free <= min(plan.objective for plan in orders) * (1 + 1e-12)


@pytest.mark.parametrize("excess", [1e-7, 1e-9, 3e-12])
def test_a_limit_that_is_missed_by_a_hair_is_missed(excess):
    """Solver tolerances are relative, the limit is not."""
    sensitivity = made_sensitivity([1.0, 0.9, 0.8], [10**12, 9 * 10**11, 7 * 10**11 + 1])
    limit = (8 * 10**12 + 4 * 9 * 10**11 + 4 * (7 * 10**11 + 1)) / 8 * (1 - excess)
    plan = IntegerProgram(limit, "bytes", candidates=(2, 4, 8)).allocate(sensitivity)
    assert plan.cost.weight_bytes <= limit
    assert list(plan.weight_bits().values()) != [8, 4, 4]


def test_a_limit_that_is_just_met_is_met():
    sensitivity = made_sensitivity([4.0, 2.0, 1.0], [1000, 3001, 707])
    exact = 32 * 4708 / (5 * 1000 + 3 * 3001 + 2 * 707)
    plan = IntegerProgram(exact, candidates=(2, 3, 5, 8)).allocate(sensitivity)
    assert plan.objective <= objective(sensitivity, (5, 3, 2)) * (1 + 1e-12)


def test_scores_of_all_magnitudes_are_told_apart():
    """With λ from 1e-9 to 1e9 the small ones still matter, once the large ones have all they want."""
    sensitivity = made_sensitivity([1e9, 1e-9, 2e-9], [1, 100, 100])
    assert IntegerProgram((8 + 800 + 200) / 201, "average_bits").allocate(sensitivity).weight_bits() == {
        "b0": 8,
        "b1": 5,
        "b2": 5,
    }
    tight = IntegerProgram((8 + 500 + 500 - 1) / 201, "average_bits").allocate(sensitivity)
    assert tight.weight_bits() == {"b0": 7, "b1": 5, "b2": 5} or tight.weight_bits() == {"b0": 8, "b1": 4, "b2": 5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_names_its_block(value):
    sensitivity = made_sensitivity([1.0, value, 2.0], [10, 10, 10])
    with pytest.raises(ValueError, match=r"block 'b1' scores (nan|inf)"):
        IntegerProgram(8.0).allocate(sensitivity)


def test_gap_and_time_limit_are_kept_and_told():
    sensitivity = random_sensitivity(1, 60)
    exact = IntegerProgram(3.1, "average_bits").allocate(sensitivity)
    for rough in (IntegerProgram(3.1, "average_bits", gap=0.2), IntegerProgram(3.1, "average_bits", time_limit=1e-9)):
        plan = rough.allocate(sensitivity)
        assert exact.objective <= plan.objective
        assert plan.objective * (1 - plan.gap) <= exact.objective * (1 + 1e-9)
    assert exact.gap < 1e-9


def test_overrides_and_fixed_widths():
    sensitivity = made_sensitivity([4.0, 2.0, 1.0], [10, 20, 30], fixed_bits={1: 7})
    plan = IntegerProgram(8, "average_bits", overrides={"b0": [3], "b2": [2, 4]}).allocate(sensitivity)
    assert plan.weight_bits() == {"b0": 3, "b1": 7, "b2": 4}
    with pytest.raises(ValueError, match=r"overrides names unknown blocks \['stem'\].*b0"):
        IntegerProgram(overrides={"stem": [8]}).check(sensitivity.blocks)


@pytest.mark.parametrize(
    ("tied", "message"),
    [([["b0", "stem"]], r"\['stem'\]"), ([["b0", "b1"], ["b1", "b2"]], r"\['b1'\]"), ([["b0", "b1"]], "in common")],
)
def test_wrong_ties(tied, message):
    sensitivity = made_sensitivity([1.0, 1.0, 1.0], [10, 10, 10], fixed_bits={0: 3})
    with pytest.raises(ValueError, match=message):
        IntegerProgram(4, "average_bits", candidates=(2, 4), tied=tuple(tied)).check(sensitivity.blocks)


def test_tie_groups_of_the_blocks_are_kept():
    sensitivity = made_sensitivity([9.0, 1.0, 1.0], [10, 10, 10])
    rows = [replace(row, block=replace(row.block, tie_group="t")) for row in sensitivity.rows[:2]]
    tied = replace(sensitivity, rows=(*rows, sensitivity.rows[2]))
    for allocator in (IntegerProgram(4, "average_bits"), Monotone(4, "average_bits")):
        bits = allocator.allocate(tied).weight_bits()
        assert bits["b0"] == bits["b1"]


LIMIT_CASES = {
    "without macs": ({"limits": {"bops": 10.0}}, r"limits.bops \(bops\) needs macs.*b0, b1"),
    "without activations": ({"limits": {"a_comp": 4.0}}, "needs num_activations.*b0, b1"),
    "without a table": ({"limits": {"latency_ms": 1.0}}, "limits.latency_ms=1.*give latency="),
}


@pytest.mark.parametrize(("values", "message"), LIMIT_CASES.values(), ids=LIMIT_CASES)
def test_a_limit_on_what_is_not_known(values, message):
    with pytest.raises(ValueError, match=message):
        IntegerProgram(8, **values).check(made_sensitivity([1.0, 2.0], [10, 10]).blocks)


def test_limits_that_exclude_each_other_are_all_told(tmp_path):
    """Only where fewer bits cost more of something, here time."""
    table = {
        "schema": "hawq.latency/1",
        "device": "odd",
        "milliseconds": {"b0": {"2": 5, "8": 1}, "b1": {"2": 2, "8": 2}},
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    latency = {"latency": str(tmp_path / "table.json"), "candidates": (2, 8)}
    blocks = made_sensitivity([1.0, 2.0], [30, 10]).blocks
    IntegerProgram(6.5, "average_bits", {"latency_ms": 3.0}, **latency).check(blocks)
    message = (
        r"target=6 \(average_bits\) and limits.latency_ms=3 cannot be met together: with the others "
        r"target reaches 6.5 average_bits at best \(alone this network reaches 2 to 8 average_bits\); "
        r"with the others limits.latency_ms reaches 7 latency_ms at best \(alone this network reaches 3 to 7 "
    )
    with pytest.raises(ValueError, match=message):
        IntegerProgram(6, "average_bits", {"latency_ms": 3.0}, **latency).check(blocks)


@pytest.mark.parametrize(
    ("unit", "target", "reached"),
    [
        ("w_comp", 9.0, lambda cost: cost.w_comp >= 9.0),
        ("average_bits", 3.5, lambda cost: cost.average_bits <= 3.5),
        ("bytes", 400, lambda cost: cost.weight_bytes <= 400),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_limit_in_every_unit(seed, unit, target, reached):
    sensitivity = made_sensitivity(random_lambdas(seed), [100, 300, 50, 450])
    assert reached(IntegerProgram(target, unit).allocate(sensitivity).cost)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(5))
def test_uniform_bits_are_those_of_the_uniform_network_of_the_same_size(seed, bits):
    """The limit is the uniform network's own size, to the bit, and the optimum is never worse than that network."""
    sizes = [int(n) for n in np.random.default_rng(seed).integers(5, 400, 6)]
    sensitivity = made_sensitivity([*random_lambdas(seed), 0.3, 7.0], sizes)
    uniform = UniformBits(bits, activations=4).allocate(sensitivity)
    plan = IntegerProgram(bits, "uniform_bits").allocate(sensitivity)
    assert plan.cost.average_bits * sum(sizes) <= uniform.cost.average_bits * sum(sizes) + 1e-6
    assert plan.objective <= uniform.objective
    assert plan.limits[0].reached <= bits
    fixed = IntegerProgram(bits, "uniform_bits", candidates=(bits, 8), overrides={"b0": [8], "b5": [8]})
    assert fixed.allocate(sensitivity).weight_bits() == uniform.weight_bits()  # no bit is left to raise a block


def test_uniform_bits_need_blocks_between_the_ends():
    with pytest.raises(UserError, match="no blocks between the first and the last: give unit=average_bits"):
        IntegerProgram(3, "uniform_bits").allocate(made_sensitivity([1.0, 2.0], [10, 20]))


def random_lambdas(seed):
    return (10 ** np.random.default_rng(seed).uniform(-2, 2, 4)).tolist()


@pytest.mark.parametrize("eigenvalues", [[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]], ids=str)
def test_flat_networks_can_be_allocated(eigenvalues):
    plan = allocate(made_sensitivity(eigenvalues, [10, 20, 30]), IntegerProgram(8.0))
    assert plan.objective == 0
    assert plan.cost.w_comp >= 8


FLAT = [0.0, 3.0, -1.0, 0.0, 0.0]  # λ of blocks of 10 to 50 weights; only b1 has a score
RULES = {
    "integer program": IntegerProgram(4.2, "average_bits"),
    "V1": Monotone(4.2, "average_bits"),
    "V1 reversed": Monotone(4.2, "average_bits", order="ascending"),
    "V3": HawqV3(0.5, "bytes", ends=None, score="eigenvalue"),
}


@pytest.mark.parametrize("eigenvalues", [FLAT, [0.0] * 5], ids=["one", "none"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_where_scores_tie_at_zero_the_plain_error_decides(rule, eigenvalues):
    """The least Σ Ω first, then the least Σ ‖Q(W) − W‖² among all plans that reach it, found by trying all plans."""
    rng = np.random.default_rng(4)
    errors = [{bits: float(n * 4.0**-bits * rng.uniform(0.8, 1.2)) for bits in range(2, 9)} for n in range(10, 60, 10)]
    sensitivity = made_sensitivity(eigenvalues, range(10, 60, 10), errors)
    plan = allocate(sensitivity, rule)
    limit = plan.limits[0].target * (150 if plan.limits[0].unit == "average_bits" else 8)
    candidates = (4, 8) if isinstance(rule, HawqV3) else range(2, 9)
    flat = [max(value, 0) == 0 for value in eigenvalues]

    def allowed(bits):
        if sum(n * b for n, b in zip(range(10, 60, 10), bits, strict=True)) > limit * (1 + 1e-12):
            return False
        if not isinstance(rule, Monotone) or all(flat):
            return True
        rest = bits[:1] + bits[2:]
        return min(rest) >= bits[1] if rule.order == "ascending" else max(rest) <= bits[1]

    def value(bits):
        plain = [row.weight_errors[b] for row, b in zip(sensitivity.rows, bits, strict=True)]
        return objective(sensitivity, bits), sum(plain)

    best = min(value(bits) for bits in itertools.product(candidates, repeat=5) if allowed(bits))
    assert value(tuple(plan.weight_bits().values())) == pytest.approx(best, rel=1e-12)
    assert plan.gap == 0 and plan.objective == pytest.approx(best[0], rel=1e-12)


def test_ties_of_small_scores_are_told_from_those_of_large_ones():
    """b0 scores 1e9 times what b1 and b2 do; these are free to trade, but not at the price of their own scores."""
    errors = [{2: 1.0, 8: 1.0}, {2: 3.0, 4: 2.0, 8: 1.0}, {2: 3.0, 4: 2.0, 8: 1.9}]
    sensitivity = made_sensitivity([1e9, 1e-9, 1e-9], [10, 10, 10], errors)
    plan = IntegerProgram(14 / 3, "average_bits", candidates=(2, 4, 8), overrides={"b0": [2]}).allocate(sensitivity)
    assert plan.weight_bits() == {"b0": 2, "b1": 8, "b2": 4}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_sensitivity_without_any_score_is_told(rule, caplog):
    sensitivity = made_sensitivity([0.0, -1.0, 0.0, 0.0], [10, 20, 30, 40])
    allocate(sensitivity, rule)
    (record,) = caplog.records
    assert "every score by eigenvalue is zero" in record.getMessage() and "plain error" in record.getMessage()
    caplog.clear()
    allocate(made_sensitivity([0.0, 1.0, 0.0, 0.0], [10, 20, 30, 40]), rule)
    assert not caplog.records


@pytest.mark.parametrize(
    ("unit", "target", "message"),
    [
        ("w_comp", 16.5, "target=16.5 .w_comp.*4 to 16 w_comp"),
        ("average_bits", 1.9, "2 to 8 average_bits"),
        ("bytes", 49, "50 to 200 bytes"),
    ],
)
def test_an_infeasible_target_states_the_feasible_range(unit, target, message):
    sensitivity = made_sensitivity([1.0, 2.0], [150, 50])
    for request in (
        IntegerProgram(target, unit).check,
        lambda blocks: IntegerProgram(target, unit).allocate(sensitivity),
    ):
        with pytest.raises(ValueError, match=message):
            request(sensitivity.blocks)


def test_fixed_widths_narrow_the_feasible_range():
    sensitivity = made_sensitivity([1.0, 2.0], [100, 100], fixed_bits={0: 8})
    with pytest.raises(ValueError, match=r"4 to 6\.4 w_comp"):
        IntegerProgram(6.5).check(sensitivity.blocks)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (IntegerProgram, {"target": 0.0}, "target=0"),
        (IntegerProgram, {"target": float("nan")}, "target=nan"),
        (IntegerProgram, {"unit": "megabytes"}, "'megabytes'.*w_comp, average_bits, uniform_bits, bytes"),
        (IntegerProgram, {"candidates": ()}, r"candidates=\[\]"),
        (IntegerProgram, {"candidates": (2, 9)}, r"candidates=\[2, 9\]"),
        (IntegerProgram, {"activations": 16}, "activations=16"),
        (
            IntegerProgram,
            {"activations": "some"},
            "activations='some' is unknown: give 1 to 8, 32 for float, or mixed",
        ),
        (IntegerProgram, {"activations": "mixed", "activation_candidates": (0,)}, r"activation_candidates=\[0\]"),
        (IntegerProgram, {"limits": {"bops": -1.0}}, "limits.bops=-1"),
        (IntegerProgram, {"limits": {"size": 1.0}}, "'size' is unknown: give w_comp"),
        (IntegerProgram, {"overrides": {"b0": [9]}}, r"overrides.b0=\[9\]"),
        (IntegerProgram, {"score": "norm"}, "score='norm'"),
        (IntegerProgram, {"gap": 1.0}, "gap=1"),
        (IntegerProgram, {"time_limit": 0.0}, "time_limit=0"),
        (UniformBits, {"weights": 0}, "weights=0 is"),
        (UniformBits, {"ends": 16}, "ends=16 is"),
        (Manual, {}, "needs one source"),
        (Manual, {"weights": {"b0": 4}, "plan": "plan.json"}, "needs one source"),
        (Manual, {"weights": {"b0": 9}}, "weights.b0=9 is"),
    ],
)
def test_values_out_of_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


SHAPES = [
    (IntegerProgram, "tied", ("conv1",), r"tied=\('conv1',\) has the wrong shape: give lists of block names"),
    (IntegerProgram, "tied", "conv1", "tied='conv1' has the wrong shape"),
    (IntegerProgram, "tied", ([1, 2],), r"tied=\(\[1, 2\],\) has the wrong shape"),
    (IntegerProgram, "overrides", {"b0": 8}, "overrides.b0=8 is out of range: give a list of bit-widths from 1 to 8"),
    (IntegerProgram, "overrides", {"b0": "8"}, "overrides.b0='8' is out of range: give a list"),
    (IntegerProgram, "overrides", {"b0": [True]}, r"overrides.b0=\[True\] is out of range"),
    (IntegerProgram, "overrides", {"b0": []}, r"overrides.b0=\[\] is out of range"),
    (IntegerProgram, "overrides", ["b0"], r"overrides=\['b0'\] has the wrong shape: give \{name: \[bits, ...\]"),
    (IntegerProgram, "limits", [4.0], r"limits=\[4.0\] has the wrong shape"),
    (IntegerProgram, "limits", {"bops": "many"}, "limits.bops='many' is out of range: give a positive number"),
    (IntegerProgram, "candidates", "248", "candidates='248' is out of range: give a list"),
    (IntegerProgram, "candidates", (4.0,), r"candidates=\[4.0\] is out of range"),
    (IntegerProgram, "candidates", 8, "candidates=8 is out of range: give a list"),
    (IntegerProgram, "target", True, "target=True is out of range"),
    (IntegerProgram, "target", 1e308, r"target=1e\+308 is out of range: give a positive number, at most 1e\+30"),
    (IntegerProgram, "time_limit", 1e9, "time_limit=1000000000.0 is out of range"),
    (IntegerProgram, "time_limit", float("nan"), "time_limit=nan is out of range"),
    (Manual, "weights", ["b0"], r"weights=\['b0'\] has the wrong shape"),
    (Manual, "weights", {"b0": [4]}, r"weights.b0=\[4\] is out of range: give 1 to 8"),
    (UniformBits, "weights", 4.0, "weights=4.0 is out of range: give 1 to 8"),
    (Allocation, "frontier_points", 10**6, "frontier_points=1000000 is out of range"),
    (Allocation, "confidence_draws", 10**6, "confidence_draws=1000000 is out of range"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), SHAPES)
def test_values_of_the_wrong_shape_or_size(kind, field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(**{field: value})


def test_uniform_bits():
    plan = UniformBits(3, 8, 4).allocate(random_sensitivity(0, 5))
    assert list(plan.weight_bits().values()) == [8, 3, 3, 3, 8]
    assert {precision.activation_bits for precision in plan.precisions.values()} == {4}


@pytest.mark.parametrize("target", [5.0, 8.0, 12.0, 15.9])
@pytest.mark.parametrize("seed", range(5))
def test_direct_baseline_is_the_widest_that_is_as_large_or_smaller(seed, target):
    sensitivity = random_sensitivity(seed, 6)
    plan = IntegerProgram(target, activations=5).allocate(sensitivity)
    direct = direct_baseline(sensitivity, plan)
    width = list(direct.weight_bits().values())[1]
    sizes = {w: UniformBits(w).allocate(sensitivity).cost.weight_bytes for w in range(2, 9)}
    fitting = [w for w, size in sizes.items() if size <= 1.01 * plan.cost.weight_bytes]
    assert width == max(fitting, default=2)
    assert {precision.activation_bits for precision in direct.precisions.values()} == {5}


def test_one_bit_is_a_candidate_like_any_other():
    errors = [{bits: 4.0**-bits for bits in (1, 2, 4, 8)}] * 2
    sensitivity = made_sensitivity([1.0, 100.0], [100, 100], errors)
    plan = IntegerProgram(12.8, candidates=(1, 2, 4, 8)).allocate(sensitivity)
    assert plan.weight_bits() == {"b0": 1, "b1": 4}
    assert plan.cost.w_comp == 12.8


def test_direct_baseline_of_a_plan_with_one_bit_is_tried_with_one_bit():
    sensitivity = made_sensitivity([1.0] * 4, [1, 100, 100, 1], [{bits: 4.0**-bits for bits in range(1, 9)}] * 4)
    plan = UniformBits(1, 1).allocate(sensitivity)
    assert direct_baseline(sensitivity, plan).weight_bits() == {"b0": 8, "b1": 1, "b2": 1, "b3": 8}


def test_one_bit_that_was_not_analysed_is_told():
    with pytest.raises(ValueError, match=r"no eigenvalue of its weights for 1 bits: give candidates=\[2, 3"):
        IntegerProgram(20.0, candidates=(1, 2)).allocate(made_sensitivity([1.0], [100]))


WEIGHTS = {"b2": 2, "b0": 8, "b1": 5}
SENSITIVITY = made_sensitivity([3.0, 2.0, 1.0], [10, 20, 30])


def test_manual_by_map():
    plan = Manual(WEIGHTS, activations=6, label="mine").allocate(SENSITIVITY)
    assert plan.precisions == {"b0": Precision(8, 6), "b1": Precision(5, 6), "b2": Precision(2, 6)}
    assert list(plan.precisions) == ["b0", "b1", "b2"]
    assert (plan.method, plan.cost.weight_bytes) == ("mine", (80 + 100 + 60) // 8)
    assert plan.objective == pytest.approx(objective(SENSITIVITY, (8, 5, 2)))


def test_manual_by_file(tmp_path):
    path = tmp_path / "plan.json"
    written = plan_of(SENSITIVITY.blocks, [8, 4, 3], 5)
    path.write_text(json.dumps({"schema": "hawq.plan/1", **to_dict(written)}))
    plan = Manual(plan=str(path)).allocate(SENSITIVITY)
    assert plan.precisions == written.precisions
    assert plan.cost == written.cost


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"b0": 8, "b1": 5}, "missing blocks .*b2.*unknown blocks none"),
        ({**WEIGHTS, "stem": 4}, "missing blocks none, unknown blocks .*stem"),
    ],
)
def test_manual_with_wrong_names(weights, message):
    with pytest.raises(ValueError, match=message):
        Manual(weights).check(SENSITIVITY.blocks)


def test_a_plan_by_hand_needs_only_its_precisions(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"precisions": {name: {"weight_bits": 3, "activation_bits": 32} for name in WEIGHTS}}))
    assert set(Manual(plan=str(path)).allocate(SENSITIVITY).precisions.values()) == {Precision(3, 32)}


def test_manual_without_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plan=.*absent.json does not exist"):
        Manual(plan=str(tmp_path / "absent.json"))


ROW = {"weight_bits": 8, "activation_bits": 4}
PLAN = {"schema": "hawq.plan/1", "precisions": dict.fromkeys(WEIGHTS, ROW)}
WRONG_BITS = (0, -1, 9, 32, 4.0, 4.5, True, None, "4", "wide", [4], 10**400)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        {"schema": "hawq.plan/1"},
        PLAN | {"schema": None},
        PLAN | {"schema": "hawq.sensitivity/2"},
        PLAN | {"colour": "red"},
        PLAN | {"precisions": 3},
        PLAN | {"precisions": {}},
        PLAN | {"precisions": [ROW, ROW, ROW]},
        PLAN | {"precisions": {"b0": 8}},
        PLAN | {"precisions": {"b0": {"weight_bits": 8}}},
        PLAN | {"precisions": dict.fromkeys(WEIGHTS, ROW | {"activation_bits": 16})},
        PLAN | {"precisions": dict.fromkeys(WEIGHTS, ROW | {"bits": 4})},
        *(PLAN | {"precisions": dict.fromkeys(WEIGHTS, ROW | {"weight_bits": bits})} for bits in WRONG_BITS),
        json.dumps(PLAN).replace('"weight_bits": 8', '"weight_bits": 8, "weight_bits": 8'),
    ],
    ids=str,
)
def test_manual_with_a_file_that_is_no_plan(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"other\.json is not a plan\.json \("):
        Manual(plan=str(path))
