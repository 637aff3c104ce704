"""Ordered fine-tuning: what it leaves alone, what it records, and how it goes on after being killed."""

import copy
from dataclasses import replace

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import Fresh, running
from sensitivities import plan_of
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tuning import BATCHES, CALIBRATION, prepared, same_state

from hawq.errors import UserError
from hawq.finetuning import FineTuning, Training, finetune, fit
from hawq.quantization import (
    LSQ,
    PACT,
    DoReFa,
    FakeQuantizer,
    RVQuant,
    Uniform,
    quantize,
    reestimate_batch_norm,
)
from hawq.reconstruction import BRECQ, reconstruct
from hawq.records import Phase, Precision

NUM_STEPS = 14
SETTINGS = FineTuning(epochs=10, max_steps=NUM_STEPS, lr=0.05, checkpoint_every=3, order="descending")


def tune(settings=SETTINGS, **options):
    options = {"seed": 1, "evaluate": lambda model: float(model.training)} | options
    return finetune(*prepared(), Fresh(BATCHES), CALIBRATION, settings, **options)


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform()], ids=["lsq", "uniform"])
@pytest.mark.parametrize("order", ["descending", "joint", "progressive"])
def test_a_killed_run_ends_in_the_same_weights(order, quantizer):
    practice = {"freeze_batch_norm": 0.5, "oscillation": "freeze", "oscillation_threshold": 0.005}
    settings = FineTuning(epochs=10, max_steps=NUM_STEPS, lr=0.05, checkpoint_every=3, order=order, **practice)
    network, history = tune(settings, quantizer=quantizer)
    assert history[-1]["frozen"] > 0
    assert [row["step"] for row in history] == list(range(1, NUM_STEPS + 1))
    for killed_at in (1, 3, 4, 8, NUM_STEPS):
        checkpoint = MemoryCheckpoint()
        with pytest.raises(Killed):
            tune(settings, quantizer=quantizer, checkpoint=checkpoint, on_row=kill_after(killed_at))
        assert checkpoint.num_saved == (killed_at - 1) // 3
        torch.manual_seed(99)
        resumed, resumed_history = tune(settings, quantizer=quantizer, checkpoint=checkpoint)
        assert same_state(resumed, network), f"killed at step {killed_at}"
        assert resumed_history == history


def test_a_run_that_is_killed_again_and_again():
    network, history = tune()
    checkpoint = MemoryCheckpoint()
    for _ in range(3):
        with pytest.raises(Killed):
            tune(checkpoint=checkpoint, on_row=kill_after(4))
    resumed, resumed_history = tune(checkpoint=checkpoint)
    assert same_state(resumed, network)
    assert resumed_history == history


def test_the_float_network_is_left_alone():
    model, sensitivity, plan = prepared()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, _ = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, SETTINGS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(network.head[1].bias, model.head[1].bias)


def test_every_block_ends_quantised_even_without_steps():
    network, history = tune(FineTuning(epochs=0))
    assert history == []
    assert all(len(row.unique()) <= 16 for row in network.body[0].weight.flatten(1))
    assert all(layer.input_quantizer.enabled for layer in network.modules() if hasattr(layer, "input_quantizer"))


def test_phases_and_rates_stand_in_the_history():
    _, history = tune(FineTuning(epochs=10, max_steps=8, lr=0.05, final_fraction=0.25, order="descending"))
    assert [row["phase"] for row in history] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [row["lr"] for row in history] == pytest.approx([0.05] * 7 + [0.025])
    assert all("accuracy" in history[step - 1] for step in (2, 4, 6, 8))


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), DoReFa(), PACT(), RVQuant()], ids=lambda one: one.name)
def test_progressive_training_narrows_to_the_plan(quantizer):
    """Weights lie on 2^8, then 2^4, then the plan's grids; the last phase starts from the calibration of `quantize`."""
    model, sensitivity, plan = prepared()
    plan = replace(plan, precisions={name: Precision(2, 3) for name in plan.precisions})
    settings = FineTuning(epochs=10, max_steps=12, lr=0.05, order="progressive", evaluations=12, keep="best")
    seen = []

    def evaluate(network):
        grids = [one for one in network.modules() if isinstance(one, FakeQuantizer)]
        seen.append((sorted({one.bits for one in grids}), len(network.body[0].weight[0].unique())))
        return 50.0

    options = {"quantizer": quantizer, "seed": 1, "evaluate": evaluate}
    network, history = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, settings, **options)
    assert [row["phase"] for row in history] == [0] * 3 + [1] * 3 + [2] * 6
    assert [bits for bits, _ in seen] == [[8]] * 3 + [[4, 8]] * 3 + [[2, 3, 8]] * 6  # inputs of the first layer keep 8
    assert all(bool(torch.isfinite(x).all()) for x in network.state_dict().values() if isinstance(x, torch.Tensor))
    if quantizer.name != "rvquant":
        assert max(number for _, number in seen[6:]) <= 4
    assert network.quantization.plan == plan


def test_bits_that_no_block_is_below_make_no_phase():
    model, sensitivity, plan = prepared()
    settings = {"epochs": 10, "max_steps": 6, "lr": 0.05}
    own = FineTuning(order="progressive", progressive_bits=(4,), **settings)
    four = replace(plan, precisions={name: Precision(4, 4) for name in plan.precisions})
    made = [
        finetune(model, sensitivity, four, Fresh(BATCHES), CALIBRATION, one, seed=1)[0]
        for one in (own, FineTuning(**settings))
    ]
    assert same_state(*made)


@pytest.mark.parametrize(("share", "frozen"), [(0.0, 0), (0.5, 7), (1.0, 14)])
def test_fine_tuning_freezes_the_last_steps(share, frozen):
    seen = []

    def evaluate(network):
        seen.append(running(network).clone())
        return 0.0

    settings = FineTuning(epochs=10, max_steps=NUM_STEPS, order="joint", evaluations=NUM_STEPS, freeze_batch_norm=share)
    network, _ = finetune(*prepared(), Fresh(BATCHES), CALIBRATION, settings, seed=1, evaluate=evaluate)
    assert [torch.equal(x, seen[-1]) for x in seen] == [False] * (NUM_STEPS - max(frozen, 1)) + [True] * max(frozen, 1)
    assert torch.equal(running(network), seen[-1]) == (frozen > 0)  # else they were measured anew in the end


def test_fine_tuning_ends_with_statistics_of_its_training_batches():
    network, _ = finetune(*prepared(), Fresh(BATCHES), CALIBRATION, SETTINGS, seed=1)
    expected = copy.deepcopy(network)
    reestimate_batch_norm(expected, [BATCHES[i % 3][0] for i in range(SETTINGS.reestimate_batches)])
    assert same_state(network, expected)


@pytest.mark.parametrize(
    "settings",
    [{}, {"reestimate_batches": 3}, {"ema_decay": 0.9}, {"freeze_batch_norm": 1.0}, {"order": "joint"}],
    ids=str,
)
def test_without_steps_nothing_is_measured_again(settings):
    """The network is that of `quantize`, batch norm's statistics included."""
    model, sensitivity, plan = prepared()
    wanted = FineTuning(epochs=0, **settings)
    network, _ = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, wanted, seed=1)
    assert same_state(network, quantize(model, sensitivity.blocks, plan, CALIBRATION))


@pytest.mark.parametrize("steps", [0, 6])
def test_fine_tuning_goes_on_from_a_reconstructed_network(steps):
    """All blocks are in it from the first step, and it is left as it was."""
    model, sensitivity, plan = prepared()
    start, _ = reconstruct(model, sensitivity.blocks, plan, CALIBRATION, BRECQ(iterations=5, batch_size=8))
    before, settings = copy.deepcopy(start), FineTuning(epochs=10, max_steps=steps, lr=1e-3, reestimate_batches=0)
    own = {"seed": 1, "start": start}
    network, history = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, settings, **own)
    assert same_state(start, before) and same_state(network, start) == (steps == 0)
    assert [row["phase"] for row in history] == [0] * steps
    calibrated, _ = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, settings, seed=1)
    assert not same_state(network, calibrated)


def test_training_lowers_the_loss():
    _, history = tune(FineTuning(epochs=20, max_steps=60, lr=0.05, order="descending"))
    losses = [row["loss"] for row in history]
    assert sum(losses[-9:]) < sum(losses[:9])


def test_a_data_loader_will_do():
    images, labels = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    _, history = finetune(*prepared(), loader, CALIBRATION, FineTuning(epochs=2), seed=1)
    _, expected = finetune(*prepared(), Fresh(BATCHES), CALIBRATION, FineTuning(epochs=2), seed=1)
    assert history == expected
    assert len(history) == 6


def test_a_plan_for_another_model_is_refused():
    model, sensitivity, _ = prepared()
    with pytest.raises(ValueError, match="plan is for another model"):
        finetune(model, sensitivity, plan_of(sensitivity.blocks[:2], 4), Fresh(BATCHES), CALIBRATION)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step(value):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets) * (value if len(calls) == 3 else 1.0)

    with pytest.raises(UserError, match=r"fine-tuning diverged at step 3 .*lower the learning rate"):
        tune(loss=loss)


def test_fit_takes_any_module_and_phase():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
    entered = []
    phases = [Phase(("a",), ("a",), 0, 0.1, 0.1), Phase((), ("a",), 4, 0.1, 0.0)]
    history = fit(
        model, phases, Fresh(BATCHES), Training(), seed=0, enter=lambda _, phase: entered.append(phase.enters)
    )
    assert entered == [("a",), ()]
    assert len(history) == 4
