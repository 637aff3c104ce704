"""Bit allocation, against brute force."""

import itertools
import json

import numpy as np
import pytest
from sensitivities import made_sensitivity, plan_of, random_sensitivity

from hawq.allocation import Manual, Mixed, UniformBits, allocate, direct_baseline
from hawq.records import Precision, to_dict

CANDIDATES = (2, 3, 5, 8)
NUM_BLOCKS = 4


def objective(sensitivity, bits):
    return sum(row.omega(width) for row, width in zip(sensitivity.rows, bits, strict=True))


def total_bits(sensitivity, bits):
    return sum(block.num_weights * width for block, width in zip(sensitivity.blocks, bits, strict=True))


def keeps_order(sensitivity, bits, free, reverse):
    """Bits never increase from a block with larger S_i to one with smaller S_i (the other way round if reversed)."""
    scored = [(row.score, width) for row, width, is_free in zip(sensitivity.rows, bits, free, strict=True) if is_free]
    sign = -1 if reverse else 1
    return all(a[0] <= b[0] or sign * a[1] >= sign * b[1] for a, b in itertools.permutations(scored, 2))


def brute_force(sensitivity, limit, reverse=False):
    """Least Σ Ω_i among all assignments that the definition allows."""
    fixed = [block.fixed_bits for block in sensitivity.blocks]
    free = [width is None for width in fixed]
    choices = [CANDIDATES if width is None else (width,) for width in fixed]
    return min(
        objective(sensitivity, bits)
        for bits in itertools.product(*choices)
        if total_bits(sensitivity, bits) <= limit and keeps_order(sensitivity, bits, free, reverse)
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("fixed_bits", [{}, {0: 8, 2: 4}], ids=str)
@pytest.mark.parametrize("seed", range(15))
def test_mixed_is_optimal(seed, fixed_bits, reverse):
    sensitivity = random_sensitivity(seed, NUM_BLOCKS, fixed_bits)
    num_weights = sum(block.num_weights for block in sensitivity.blocks)
    ends = [[fixed_bits.get(i, width) for i in range(NUM_BLOCKS)] for width in (2, 8)]
    least, most = (total_bits(sensitivity, bits) / num_weights for bits in ends)
    target = least + (most - least) * np.random.default_rng(seed).random()
    plan = Mixed(target, "average_bits", CANDIDATES, reverse=reverse).allocate(sensitivity)
    bits = list(plan.weight_bits().values())
    assert total_bits(sensitivity, bits) <= target * num_weights * (1 + 1e-12)
    assert keeps_order(sensitivity, bits, [i not in fixed_bits for i in range(NUM_BLOCKS)], reverse)
    assert all(bits[i] == width for i, width in fixed_bits.items())
    best = brute_force(sensitivity, target * num_weights, reverse)
    assert plan.objective == pytest.approx(objective(sensitivity, bits))
    assert plan.objective == pytest.approx(best, rel=1e-4, abs=1e-9)


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
    assert reached(Mixed(target, unit).allocate(sensitivity).cost)


def random_lambdas(seed):
    return (10 ** np.random.default_rng(seed).uniform(-2, 2, 4)).tolist()


@pytest.mark.parametrize("excess", [1, 40])
def test_a_limit_that_is_missed_by_a_hair_is_missed(excess):
    """Large networks: solver tolerances are relative, the limit is not."""
    sensitivity = made_sensitivity([1.0, 0.9, 0.8], [10_000_000, 9_000_000, 7_000_001])
    limit_bytes = (8 * 10_000_000 + 4 * 9_000_000 + 4 * 7_000_001) / 8 - excess
    assert Mixed(limit_bytes, "bytes", (2, 4, 8)).allocate(sensitivity).cost.weight_bytes <= limit_bytes


def test_a_limit_that_is_just_met_is_met():
    sensitivity = made_sensitivity([4.0, 2.0, 1.0], [1000, 3001, 707])
    exact = 32 * 4708 / (5 * 1000 + 3 * 3001 + 2 * 707)
    best = brute_force(sensitivity, 5 * 1000 + 3 * 3001 + 2 * 707)
    assert Mixed(exact, candidates=CANDIDATES).allocate(sensitivity).objective == pytest.approx(best)


@pytest.mark.parametrize("eigenvalues", [[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]], ids=str)
def test_flat_networks_can_be_allocated(eigenvalues):
    plan = allocate(made_sensitivity(eigenvalues, [10, 20, 30]), Mixed(8.0))
    assert plan.objective == 0
    assert plan.cost.w_comp >= 8


@pytest.mark.parametrize(
    ("unit", "target", "message"),
    [
        ("w_comp", 16.5, "bits.target=16.5 .w_comp.*4 to 16 w_comp"),
        ("average_bits", 1.9, "2 to 8 average_bits"),
        ("bytes", 49, "50 to 200 bytes"),
    ],
)
def test_an_infeasible_target_states_the_feasible_range(unit, target, message):
    sensitivity = made_sensitivity([1.0, 2.0], [150, 50])
    for request in (Mixed(target, unit).check, lambda blocks: Mixed(target, unit).allocate(sensitivity)):
        with pytest.raises(ValueError, match=message):
            request(sensitivity.blocks)


def test_fixed_widths_narrow_the_feasible_range():
    sensitivity = made_sensitivity([1.0, 2.0], [100, 100], fixed_bits={0: 8})
    with pytest.raises(ValueError, match=r"4 to 6\.4 w_comp"):
        Mixed(6.5).check(sensitivity.blocks)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Mixed, {"target": 0.0}, "bits.target=0"),
        (Mixed, {"target": float("nan")}, "bits.target=nan"),
        (Mixed, {"unit": "megabytes"}, "'megabytes'.*w_comp, average_bits, bytes"),
        (Mixed, {"candidates": ()}, r"bits.candidates=\[\]"),
        (Mixed, {"candidates": (2, 9)}, r"bits.candidates=\[2, 9\]"),
        (Mixed, {"activations": 16}, "bits.activations=16"),
        (UniformBits, {"weights": 1}, r"bits.weights=\[1\]"),
        (UniformBits, {"ends": 16}, r"bits.ends=\[16\]"),
        (Manual, {}, "needs one source"),
        (Manual, {"weights": {"b0": 4}, "plan": "plan.json"}, "needs one source"),
        (Manual, {"weights": {"b0": 9}}, r"bits.weights.b0=\[9\]"),
    ],
)
def test_values_out_of_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_uniform_bits():
    plan = UniformBits(3, 8, 4).allocate(random_sensitivity(0, 5))
    assert list(plan.weight_bits().values()) == [8, 3, 3, 3, 8]
    assert {precision.activation_bits for precision in plan.precisions.values()} == {4}


@pytest.mark.parametrize("target", [5.0, 8.0, 12.0, 15.9])
@pytest.mark.parametrize("seed", range(5))
def test_direct_baseline_is_the_widest_that_is_no_larger(seed, target):
    sensitivity = random_sensitivity(seed, 6)
    plan = Mixed(target, activations=5).allocate(sensitivity)
    direct = direct_baseline(sensitivity, plan)
    width = list(direct.weight_bits().values())[1]
    sizes = {w: UniformBits(w).allocate(sensitivity).cost.weight_bytes for w in range(2, 9)}
    fitting = [w for w, size in sizes.items() if size <= plan.cost.weight_bytes]
    assert width == max(fitting, default=2)
    assert {precision.activation_bits for precision in direct.precisions.values()} == {5}


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


def test_manual_without_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bits.plan=.*absent.json does not exist"):
        Manual(plan=str(tmp_path / "absent.json"))


ROW = {"weight_bits": 8, "activation_bits": 4}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        {"precisions": 3},
        {"precisions": {"b0": 8}},
        {"precisions": {"b0": {"weight_bits": 8}}},
        {"precisions": dict.fromkeys(WEIGHTS, ROW | {"weight_bits": "wide"})},
        {"precisions": dict.fromkeys(WEIGHTS, ROW | {"weight_bits": 9})},
        {"precisions": dict.fromkeys(WEIGHTS, ROW | {"activation_bits": 16})},
        {"precisions": {}},
    ],
    ids=str,
)
def test_manual_with_a_file_that_is_no_plan(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"bits\.|other\.json"):
        Manual(plan=str(path)).check(SENSITIVITY.blocks)
