"""The schedule: which block enters when, for how many steps, at which learning rate."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sensitivities import made_sensitivity, plan_of
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler

from hawq.finetuning import ORDERS, SCHEDULES, FineTuning, Order, Training, learning_rate, make_phases, tuning_order
from hawq.records import Phase, Precision

SENSITIVITY = made_sensitivity([1.0, 9.0, -5.0, 4.0], [10, 10, 10, 10])
PLAN = plan_of(SENSITIVITY.blocks, [2, 4, 8, 3])
# Ω = λ · 4^−bits: b0 1/16, b1 9/256, b2 0 (negative λ), b3 4/64


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "progressive"])
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


WIDTHS = st.lists(st.integers(2, 8), min_size=1, unique=True).map(lambda widths: sorted(widths, reverse=True))


@given(
    planned=st.lists(
        st.tuples(st.sampled_from([2, 3, 4, 8, 32]), st.sampled_from([2, 4, 8, 32])), min_size=1, max_size=9
    ),
    widths=WIDTHS,
    num_steps=st.integers(1, 500),
    final_fraction=st.floats(0, 1),
)
def test_progressive_phases_narrow_all_blocks_to_the_plan(planned, widths, num_steps, final_fraction):
    """Each phase's precisions are max(planned, least bits), differ from those before, and end as planned."""
    sensitivity = made_sensitivity([1.0] * len(planned), [7] * len(planned))
    plan = plan_of(sensitivity.blocks, [weights for weights, _ in planned])
    precisions = dict(zip(plan.precisions, (Precision(*pair) for pair in planned), strict=True))
    plan = replace(plan, precisions=precisions)
    names = [name for name, one in precisions.items() if one.weight_bits < 32]
    phases = make_phases(sensitivity, plan, Order("progressive", final_fraction, tuple(widths)), num_steps, 0.1, 0)
    assert sum(phase.steps for phase in phases) == num_steps
    held = {}
    for phase in phases:
        assert sorted(phase.quantized) == sorted(names)
        now = {
            name: (
                max(precisions[name].weight_bits, phase.least_bits),
                max(precisions[name].activation_bits, phase.least_bits),
            )
            for name in names
        }
        assert sorted(phase.enters) == sorted(name for name in names if held.get(name) != now[name])
        held = now
    assert held == {name: (precisions[name].weight_bits, precisions[name].activation_bits) for name in names}
    narrowest = min((min(pair) for pair in held.values()), default=9)
    assert [phase.least_bits for phase in phases] == [w for w in widths if w > narrowest] + [1]
    assert {phase.final_lr for phase in phases[:-1]} <= {0.1} and phases[-1].final_lr == 0
    shares = [phase.steps for phase in phases[:-1]] or [0]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("wrong", [(), [4, 8], (4, 4), (9, 4), (8, 1), (8, 4.0), (True,), "84", 8, None])
@pytest.mark.parametrize("kind", [Order, FineTuning])
def test_progressive_bits_that_do_not_fall_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=r"^progressive_bits=.*give some of 8 … 2, as \[8, 4\]$"):
        kind(progressive_bits=wrong)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_learning_rate_is_timms(num_steps, schedule):
    """timm's scheduler over one phase, its rate read after each update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = {
        "cosine": lambda: CosineLRScheduler(optimizer, num_steps, lr_min=0.1, t_in_epochs=False),
        "linear": lambda: PolyLRScheduler(optimizer, num_steps, power=1, lr_min=0.1, t_in_epochs=False),
        "step": lambda: StepLRScheduler(optimizer, num_steps / 3, 0.1, t_in_epochs=False),
        "constant": lambda: StepLRScheduler(optimizer, num_steps + 1, t_in_epochs=False),
    }[schedule]()
    phase = Phase((), (), num_steps, 0.4, {"step": 0.0, "constant": 0.4}.get(schedule, 0.1))
    for step in range(num_steps):
        theirs.step_update(step)
        assert learning_rate(phase, step, schedule) == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_phase_of_equal_rates_keeps_its_own(schedule):
    assert {learning_rate(Phase((), (), 7, 0.02, 0.02), step, schedule) for step in range(7)} == {0.02}


def test_warm_up_rises_to_the_full_rate():
    assert [Training(warmup_steps=3).warmup(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Training().warmup(0) == 1.0


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
        {"epochs": 1e7},
        {"evaluations": 10**7},
        {"batch_size": 10**7},
        {"max_steps": -1},
        {"batch_size": 0},
        {"lr": -0.1},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"label_smoothing": 1.0},
        {"eval_samples": 0},
        {"checkpoint_every": 0},
        {"warmup_steps": -1},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"accumulate": 0},
        {"accumulate": 129},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Training, FineTuning])
def test_values_out_of_range(kind, values):
    (key,) = values
    with pytest.raises(ValueError, match=f"^{key}={values[key]}"):
        kind(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "zigzag"},
        {"optimizer": "sdg"},
        {"optimizer": "adahessian"},
        {"precision": "half"},
        {"keep": "first"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Training, FineTuning])
def test_unknown_names(kind, values):
    ((key, value),) = values.items()
    with pytest.raises(ValueError, match=f"^{key}='{value}' .*give .*"):
        kind(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"order": "upwards"},
        {"final_fraction": -0.1},
        {"final_fraction": 1.1},
        {"calibration_batches": 0},
        {"distillation": -0.1},
        {"distillation": 1.1},
        {"distillation": float("nan")},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"reestimate_batches": -1},
        {"reestimate_batches": 10**7},
        {"calibration_batches": 10**7},
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
    with pytest.raises(ValueError, match=f"^{key}={values[key]}|^{key}='{values[key]}'"):
        FineTuning(**values)
