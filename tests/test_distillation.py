"""Distillation against its formula, and what it does to training."""

import copy

import numpy as np
import pytest
import torch
from networks import NETWORKS, Dropped, Fresh, build, samples
from scipy.special import log_softmax, softmax
from torch import nn
from torch.nn import functional as F
from tuning import BATCHES, CALIBRATION, prepared, same_state

from hawq.finetuning import Distillation, Ensemble, FineTuning, Training, finetune, fit, soft_loss
from hawq.finetuning.compiling import with_compiled_teacher
from hawq.finetuning.folding import folded
from hawq.finetuning.step import Objective
from hawq.records import Phase

JOINT = (Phase((), (), 40, 0.05, 0.0),)


def logits(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(5, 3), (2, 7, 4, 3)], ids=str)
def test_soft_loss_is_hintons(shape, temperature):
    student, teacher = logits(*shape)
    p = softmax(teacher.numpy() / temperature, axis=1)
    terms = p * (np.log(p) - log_softmax(student.numpy() / temperature, axis=1))
    expected = temperature**2 * terms.sum(axis=1).mean()
    assert float(soft_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_is_the_difference_of_probabilities(temperature):
    student, teacher = logits(6, 5)
    soft_loss(student.requires_grad_(), teacher, temperature).backward()
    difference = softmax(student.detach().numpy() / temperature, 1) - softmax(teacher.numpy() / temperature, 1)
    np.testing.assert_allclose(student.grad.numpy(), temperature * difference / 6, rtol=1e-10)


def test_high_temperature_compares_centred_logits():
    """T → ∞: T²·KL → ‖(t − t̄) − (s − s̄)‖² / (2K), matching of logits (1503.02531, §2.1)."""
    student, teacher = logits(6, 5)
    centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    expected = float(centred.square().sum(1).mean()) / (2 * 5)
    assert float(soft_loss(student, teacher, 1e4)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mix_weighs_labels_and_teacher(weight):
    teacher, student = build("residual"), build("branches")
    inputs, labels = samples(6)
    outputs = student(inputs).detach()
    hard = F.cross_entropy(outputs, labels)
    distillation = Distillation(teacher, weight, 2.0)
    mixed = distillation.mix(hard, outputs, distillation.teach(inputs))
    soft = soft_loss(outputs, teacher(inputs).detach(), 2.0)
    assert float(mixed) == pytest.approx(float((1 - weight) * hard + weight * soft))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_teacher_computes_in_the_precision_of_its_student(precision):
    teacher, student = build("residual", torch.float32), build("residual", torch.float32)
    seen = []
    for network in (teacher, student):
        network.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    objective = Objective(F.cross_entropy, Distillation(teacher, 0.5, 4.0), precision)
    objective(student, samples(6, torch.float32)).backward()
    assert seen == [getattr(torch, precision)] * 2


def test_teacher_is_read_in_eval_mode_and_not_changed():
    teacher = Dropped().train()
    teacher.body[1].eval()
    before, modes = copy.deepcopy(teacher), [module.training for module in teacher.modules()]
    random_before = torch.get_rng_state()
    distillation = Distillation(teacher, 0.5, 4.0)
    targets = distillation.teach(BATCHES[0][0])
    distillation.mix(torch.zeros(()), torch.zeros(8, 3, requires_grad=True), targets).backward()
    assert same_state(teacher, before)
    assert [module.training for module in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), random_before)


def test_training_follows_the_teacher_and_not_the_labels():
    torch.manual_seed(3)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)) for _ in range(2))
    wrong = [(images, torch.zeros_like(labels)) for images, labels in BATCHES]
    history = fit(student, JOINT, Fresh(wrong), Training(), seed=0, distillation=Distillation(teacher, 1.0, 4.0))
    assert history[-1]["loss"] < 0.05 * history[0]["loss"]
    images = torch.cat([images for images, _ in BATCHES])
    assert torch.equal(teacher(images).argmax(1), student(images).argmax(1))


def test_finetuning_distils_from_its_own_float_parent():
    settings = FineTuning(max_steps=1, distillation=0.25, temperature=3.0, order="joint")
    model, sensitivity, plan = prepared()
    before = copy.deepcopy(model)
    hards = []

    def loss(outputs, targets):
        hards.append((outputs.detach(), F.cross_entropy(outputs, targets)))
        return hards[-1][1]

    _, history = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, settings, loss=loss)
    ((outputs, hard),) = hards
    soft = soft_loss(outputs, before.eval()(BATCHES[0][0]), 3.0)
    assert history[0]["loss"] == pytest.approx(float(0.75 * hard.detach() + 0.25 * soft.detach()))
    assert same_state(model, before)
    assert model.training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compiled_teacher_answers_the_same(network, precision, monkeypatch):
    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_network(model, backend="aot_eager"))
    teacher, (inputs, labels) = build(network, torch.float32), samples(6, torch.float32)
    plain = Objective(F.cross_entropy, Distillation(teacher, 0.5, 4.0), precision)
    fast = with_compiled_teacher(plain, inputs)
    again = with_compiled_teacher(fast, inputs)  # as the next phase does
    assert fast.distillation.network is not None
    assert again.distillation.network is not None
    expected = float(plain(teacher, (inputs, labels)).detach())
    near = {"float32": 1e-5, "bfloat16": 0.05}[precision]
    for objective in (fast, again):
        assert float(objective(teacher, (inputs, labels)).detach()) == pytest.approx(expected, rel=near)


def test_a_teacher_that_cannot_be_compiled_or_answers_otherwise_stays_as_it_is(monkeypatch):
    def broken(inputs):
        raise RuntimeError("no compiler")

    teacher, (inputs, _) = build("residual", torch.float32), samples(6, torch.float32)
    objective = Objective(F.cross_entropy, Distillation(teacher, 0.5, 4.0), "float32")
    for network in (broken, lambda inputs: 1.1 * teacher(inputs)):
        monkeypatch.setattr(torch, "compile", lambda model, made=network, **_: made)
        assert with_compiled_teacher(objective, inputs) == objective
    without = Objective(F.cross_entropy, None, "float32")
    assert with_compiled_teacher(without, inputs) is without


class Shared(nn.Module):
    """One convolution before two batch norms, which cannot be folded into it."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.second.weight.data.fill_(3.0)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)))).mean((2, 3))


class Dynamic(nn.Module):
    """What cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) * (2 if bool(x.sum() > 0) else 1)


def norms_in(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_folded_teacher_gives_the_same_outputs(name):
    model = build(name, torch.float32)
    images, before = samples(8, torch.float32)[0], copy.deepcopy(model.state_dict())
    fast = folded(model, images[:2])
    expected = model(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert norms_in(fast) < norms_in(model) or not norms_in(model)


class Around(nn.Module):
    """Cannot be traced as a whole, but its part can."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) * (2 if bool(x.sum() > 0) else 1)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize(
    "around", [Around, lambda part: Ensemble([Dropped(), part, part])], ids=["dynamic", "ensemble"]
)
def test_parts_are_folded_where_the_whole_cannot_be(around, name):
    model = around(build(name, torch.float32)).eval()
    images = samples(8, torch.float32)[0]
    fast, expected = folded(model, images[:2]), model(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert norms_in(fast) < norms_in(model) or not norms_in(model)


@pytest.mark.parametrize("network", [Shared, Dynamic])
def test_what_cannot_be_folded_stays(network):
    torch.manual_seed(0)
    model = network().train()
    assert folded(model, torch.randn(2, 3, 4, 4)) is model
    assert model.training and model.conv.weight.requires_grad
