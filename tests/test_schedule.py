"""The schedule: which block enters when, for how many steps, at which learning rate."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensitivities import made_sensitivity, plan_of

from hawq.finetuning import ORDERS, FineTuning, Order, Training, learning_rate, make_phases, tuning_order
from hawq.records import Phase

SENSITIVITY = made_sensitivity([1.0, 9.0, -5.0, 4.0], [10, 10, 10, 10])
PLAN = plan_of(SENSITIVITY.blocks, [2, 4, 8, 3])
# Ω = λ · 4^−bits: b0 1/16, b1 9/256, b2 0 (negative λ), b3 4/64


@pytest.mark.parametrize("order", ORDERS)
@given(
    eigenvalues=st.lists(st.floats(-9, 9), min_size=1, max_size=20),
    num_steps=st.integers(0, 500),
    final_fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_order_takes_the_same_steps(order, eigenvalues, num_steps, final_fraction, seed):
    sensitivity = made_sensitivity(eigenvalues, [7] * len(eigenvalues))
    plan = plan_of(sensitivity.blocks, 4)
    phases = make_phases(sensitivity, plan, Order(order, final_fraction), num_steps, 0.1, seed)
    assert sum(phase.steps for phase in phases) == num_steps
    assert min(phase.steps for phase in phases) >= 0
    assert sorted(name for phase in phases for name in phase.enters) == sorted(plan.precisions)
    for before, after in pairwise(phases):
        assert after.quantized == before.quantized + after.enters
    assert set(phases[-1].quantized) == set(plan.precisions)
    assert phases[-1].final_lr == 0
    shares = [phase.steps for phase in phases[:-1]] or [0]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("order", "expected"), [("descending", ["b0", "b3", "b1", "b2"]), ("ascending", ["b2", "b1", "b0", "b3"])]
)
def test_order_is_by_omega_at_the_planned_bits(order, expected):
    assert tuning_order(SENSITIVITY, PLAN, order, seed=0) == expected


def test_float_blocks_do_not_enter():
    plan = plan_of(SENSITIVITY.blocks, [32, 4, 8, 32])
    assert tuning_order(SENSITIVITY, plan, "descending", seed=0) == ["b1", "b2"]


def test_random_order_is_drawn_from_the_seed():
    orders = {seed: tuple(tuning_order(SENSITIVITY, PLAN, "random", seed)) for seed in range(20)}
    assert orders[7] == tuple(tuning_order(SENSITIVITY, PLAN, "random", 7))
    assert len(set(orders.values())) > 5
    assert all(sorted(order) == sorted(PLAN.precisions) for order in orders.values())


def test_joint_is_one_phase():
    (phase,) = make_phases(SENSITIVITY, PLAN, Order("joint"), 10, 0.1, 0)
    assert phase.enters == phase.quantized == tuple(tuning_order(SENSITIVITY, PLAN, "joint", 0))
    assert (phase.lr, phase.final_lr, phase.steps) == (0.1, 0.0, 10)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.4), (5, 0.25), (10, 0.1)], ids=["start", "middle", "end"])
def test_learning_rate_is_half_a_cosine(step, expected):
    assert learning_rate(Phase((), (), 10, 0.4, 0.1), step) == pytest.approx(expected)


def test_constant_learning_rate():
    assert {learning_rate(Phase((), (), 7, 0.02, 0.02), step) for step in range(7)} == {0.02}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"epochs": 2}, 20), ({"epochs": 0.25}, 3), ({"epochs": 9, "max_steps": 7}, 7), ({"epochs": 0}, 0)],
)
def test_number_of_steps(settings, steps):
    assert Training(**settings).num_steps(steps_per_epoch=10) == steps


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": -1},
        {"epochs": float("nan")},
        {"max_steps": -1},
        {"batch_size": 0},
        {"lr": -0.1},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"label_smoothing": 1.0},
        {"eval_samples": 0},
        {"checkpoint_every": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Training, FineTuning])
def test_values_out_of_range(kind, values):
    (key,) = values
    with pytest.raises(ValueError, match=f"{kind.section}.{key}={values[key]}"):
        kind(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"order": "upwards"},
        {"final_fraction": -0.1},
        {"final_fraction": 1.1},
        {"calibration_batches": 0},
        {"reestimate_batches": -1},
        {"freeze_batch_norm": -0.1},
        {"freeze_batch_norm": float("nan")},
        {"oscillation": "dampen"},
        {"oscillation_threshold": 0.0},
        {"oscillation_threshold": float("nan")},
    ],
    ids=str,
)
def test_values_of_finetuning_alone_out_of_range(values):
    (key,) = values
    with pytest.raises(ValueError, match=f"finetune.{key}={values[key]}|finetune.{key}='{values[key]}'"):
        FineTuning(**values)
