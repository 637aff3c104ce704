"""Averages, clipping, pieces of a batch, bfloat16, compilation: against closed forms and plain training."""

import copy
import math

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import Dropped, Fresh, build, samples
from torch import nn
from torch.nn import functional as F
from tuning import BATCHES, CALIBRATION, prepared, same_state

from hawq.errors import UserError
from hawq.finetuning import FineTuning, Training, finetune, fit
from hawq.finetuning.compiling import compiled
from hawq.finetuning.step import Objective, add_gradients, gradient_length
from hawq.records import Phase

ONE = Phase((), (), 6, 0.1, 0.1)


def tune(settings, **options):
    return finetune(*prepared(), Fresh(BATCHES), CALIBRATION, settings, seed=1, **options)


def trained(settings, model=None, phases=(ONE,), **options):
    torch.manual_seed(2)
    model = model or Dropped()
    return model, fit(model, phases, Fresh(BATCHES), settings, seed=3, **options)


def weights_after_each_step(settings):
    """The state of the network as it is trained without an average."""
    seen = []

    def evaluate(network):
        seen.append({name: value.clone().double() for name, value in network.state_dict().items()})
        return 0.0

    trained(settings, evaluate=evaluate)
    assert len(seen) == ONE.steps
    return seen


def test_average_is_the_exponential_one():
    decay = 0.7
    states = weights_after_each_step(Training(evaluations=ONE.steps))
    expected = states[0]
    for state in states[1:]:
        expected = {name: decay * old + (1 - decay) * state[name] for name, old in expected.items()}
    measured = []
    model, _ = trained(Training(ema_decay=decay), evaluate=lambda network: measured.append(copy.deepcopy(network)) or 0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert same_state(model, measured[-1])
    assert not torch.equal(model.body[0].weight.double(), states[-1]["body.0.weight"])


@pytest.mark.parametrize("off", [None, 0.0])
def test_no_average(off):
    assert same_state(trained(Training(ema_decay=off))[0], trained(Training())[0])


def test_average_begins_anew_where_blocks_enter_and_goes_on_where_none_do():
    def averages(*entering):
        phases = [Phase(names, (), 1, 0.1, 0.1) for names in entering]
        seen = []
        trained(Training(ema_decay=0.9), phases=phases, evaluate=lambda x: seen.append(copy.deepcopy(x)) or 0.0)
        return seen

    plain = [trained(Training(), phases=[Phase((), (), 1, 0.1, 0.1)] * count)[0] for count in (1, 2)]
    anew, on = averages(("a",), ("b",)), averages(("a",), ())
    assert [same_state(left, right) for left, right in zip(anew, plain, strict=True)] == [True, True]
    assert [same_state(left, right) for left, right in zip(on, plain, strict=True)] == [True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.8},
        {"accumulate": 3, "clip_norm": 0.5},
        {"ema_decay": 0.8, "accumulate": 2, "optimizer": "adamw", "lr": 0.01, "distillation": 0.5},
    ],
    ids=str,
)
def test_a_killed_run_ends_in_the_same_weights(options):
    settings = FineTuning(
        **({"epochs": 10, "order": "descending", "max_steps": 14, "lr": 0.05, "checkpoint_every": 3} | options)
    )
    network, history = tune(settings)
    for killed_at in (5, 8, 13):  # within the phases of blocks, and within the last one
        checkpoint = MemoryCheckpoint()
        with pytest.raises(Killed):
            tune(settings, checkpoint=checkpoint, on_row=kill_after(killed_at))
        resumed, resumed_history = tune(settings, checkpoint=checkpoint)
        assert same_state(resumed, network), f"killed at step {killed_at}"
        assert resumed_history == history


@pytest.mark.parametrize("parts", [2, 3, 5, 7])
def test_pieces_add_up_to_the_gradient_of_the_batch(parts):
    model, batch = build("branches"), samples(7)
    objective = Objective(F.cross_entropy, None, "float32")
    expected = F.cross_entropy(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    assert float(add_gradients(model, objective, batch, parts)) == pytest.approx(float(expected.detach()), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)


def test_training_in_pieces_is_training_on_the_batch():
    def train(accumulate):
        return trained(Training(accumulate=accumulate, lr=0.1), model=build("branches", torch.float32))

    (model, history), (expected, expected_history) = train(4), train(1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in expected_history], rel=1e-5)


def test_length_of_the_gradient_is_that_of_all_parameters():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    layer.bias.grad = torch.tensor([12.0, 0.0])
    assert float(gradient_length(layer)) == pytest.approx(13.0)


def test_clipping_acts_in_training():
    """Plain gradient descent of one step moves by lr times the gradient."""
    once = Phase((), (), 1, 0.5, 0.5)
    settings = {"momentum": 0.0, "weight_decay": 0.0}
    before = torch.cat([parameter.detach().reshape(-1) for parameter in trained(Training(), phases=())[0].parameters()])

    def moved(**options):
        model, _ = trained(Training(**settings, **options), phases=[once])
        return float((torch.cat([parameter.reshape(-1) for parameter in model.parameters()]) - before).detach().norm())

    assert moved(clip_norm=1e3) == pytest.approx(moved(), rel=1e-6)
    assert moved() > 0.5 * 0.02
    assert moved(clip_norm=0.02) == pytest.approx(0.5 * 0.02, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"distillation": 0.5}], ids=str)
def test_bfloat16_trains_nearly_alike(options):
    settings = {"epochs": 20, "order": "descending", "max_steps": 40, "lr": 0.05} | options
    network, history = tune(FineTuning(**settings, precision="bfloat16"))
    _, expected = tune(FineTuning(**settings))
    assert history[0]["loss"] != expected[0]["loss"]
    assert history[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert sum(row["loss"] for row in history[-6:]) == pytest.approx(sum(row["loss"] for row in expected[-6:]), rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_network_trains_alike(precision, monkeypatch):
    """Through all of PyTorch's tracing; the generation of C++ would take minutes."""
    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_network(model, backend="aot_eager"))
    settings = {"epochs": 10, "max_steps": 4, "lr": 0.05, "order": "joint", "precision": precision}
    torch._dynamo.utils.counters.clear()
    network, history = tune(FineTuning(**settings, compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "not the network and its teacher once each"
    expected, expected_history = tune(FineTuning(**settings))
    near = {"float32": 0.02, "bfloat16": 0.1}[precision]
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in expected_history], rel=near)
    assert network.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(network.body[1].running_mean, expected.body[1].running_mean, rtol=0.05, atol=0.01)


def wrong(model, **_):
    return lambda inputs: 2 * model(inputs)


def broken(model, **_):
    def run(inputs):
        raise RuntimeError("No working C++ compiler found\nsecond line")

    return run


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (wrong, r"compile=true changes the loss of a batch from .* to .*: give compile=false"),
        (broken, r"compile=true fails here \(No working C\+\+ compiler found\): give .*=false"),
    ],
)
def test_what_cannot_be_compiled_is_told(compiler, message, monkeypatch):
    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.raises(UserError, match=message):
        trained(Training(compile=True))


class WithoutGradient(nn.Module):
    """A compiled network whose forward is right, and which loses the gradient of some parameters."""

    def __init__(self, model, lost):
        super().__init__()
        self._model, self._lost = model, lost

    def forward(self, inputs):
        state = {name: 0 * p + p.detach() for name, p in self._model.named_parameters() if self._lost in name}
        return torch.func.functional_call(self._model, state, (inputs,))


@pytest.mark.parametrize("lost", ["weight", "bias", ""])
def test_a_compilation_that_loses_gradients_is_refused(lost, monkeypatch):
    """The forward alone says nothing: PyTorch 2.11 gave the right loss and no gradient at all."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: WithoutGradient(model, lost))
    with pytest.raises(UserError, match=r"compile=true loses the gradient of .*: give compile=false"):
        trained(Training(compile=True))


@pytest.mark.parametrize("factor", [0.1, 10])
def test_a_compilation_with_other_gradients_is_refused(factor, monkeypatch):
    def scaled(model, **_):
        return lambda inputs: (out := model(inputs)).detach() + factor * (out - out.detach())

    monkeypatch.setattr(torch, "compile", scaled)
    with pytest.raises(UserError, match=r"compile=true changes the length of a gradient from .* to .*: give"):
        trained(Training(compile=True))


class Chaotic(nn.Module):
    """Its outputs hang on the last digits of its inputs, as those of a block do that has just been quantised."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        return 4 * self.linear(x) * (1 + 0.5 * torch.sin(1e7 * x.double().sum()).float())


@pytest.mark.parametrize("factor", [1, 20])
def test_rounding_alone_does_not_count_as_a_wrong_compilation(factor, monkeypatch):
    """The compiled network rounds its inputs otherwise, or its outputs are also twenty times as large."""
    objective, far = Objective(F.cross_entropy, None, "float32"), 0
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x: factor * model(x * (1 + 2.0**-20)))
    for seed in range(8):
        torch.manual_seed(seed)
        model, batch = Chaotic(), (torch.randn(16, 12), torch.randint(5, (16,)))
        losses = [float(objective(network, batch).detach()) for network in (model, torch.compile(model))]
        far += not math.isclose(*losses, rel_tol=0.01)
        if factor == 1:
            compiled(model, objective, batch, seed)
        else:
            with pytest.raises(UserError, match="changes the loss of a batch"):
                compiled(model, objective, batch, seed)
    assert far >= 6


def test_the_check_of_a_compilation_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model, history = trained(Training(compile=True))
    expected, expected_history = trained(Training())
    assert same_state(model, expected)
    assert history == expected_history
    assert math.isfinite(history[-1]["loss"])


def curve(values, **options):
    """Fine-tuning whose curve is made up: (the best state, the networks measured)."""
    best, seen, values = {}, [], iter(values)

    def evaluate(network):
        seen.append(copy.deepcopy(network.state_dict()))
        return next(values)

    settings = FineTuning(
        epochs=10, order="descending", max_steps=8, final_fraction=0.25, checkpoint_every=1, evaluations=8
    )
    tune(settings, evaluate=evaluate, on_best=best.update, **options)
    return best, seen


def equal(state, other):
    return all(torch.equal(value, other[name]) for name, value in state.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([90, 80, 70, 60, 10, 50, 20, 30], 5),  # the high ones at the start are of networks that are half float
        ([0, 0, 0, 0, 10, 11, 12, 13], 7),
        ([0, 0, 0, 0, 13, 12, 13, 13], 4),
    ],
)
def test_best_network_is_that_of_the_curve_once_all_is_quantised(values, expected):
    best, seen = curve(values)
    assert equal(best, seen[expected])
    assert [index for index, state in enumerate(seen) if equal(best, state)] == [expected]


def test_best_network_survives_a_kill():
    values, checkpoint = [0, 0, 0, 0, 10, 50, 20, 30], MemoryCheckpoint()
    best, _ = curve(values)
    with pytest.raises(Killed):
        curve(values, checkpoint=checkpoint, on_row=kill_after(8))
    resumed, seen = curve(values[7:], checkpoint=checkpoint)
    assert len(seen) == 1
    assert equal(resumed, best)
