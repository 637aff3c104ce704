"""Measured scores, against whole networks quantised by hand, explicit Hessians, and layers computed by hand."""

from __future__ import annotations

import statistics
from math import sqrt

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import NETWORKS, build, cut, explicit_gauss_newton, explicit_hessian, samples
from processes import in_processes
from torch import nn
from torch.nn import functional as F

from hawq.blocks import block_layers, find_blocks
from hawq.curvature.distillation import DistillationLoss
from hawq.distributed import rank
from hawq.errors import UserError
from hawq.quantization import LSQ, QuantizedWeights, Uniform, quantized_weight
from hawq.records import ACTIVATIONS, FLOAT_BITS, WEIGHTS, Precision
from hawq.scoring import (
    Conditions,
    JointTraining,
    kl_score,
    learned_steps_score,
    output_shift_score,
    quadratic_score,
)
from hawq.trials import Trials

BATCH = samples(9)
BATCHES = cut(BATCH, (5, 4))
INPUTS = [inputs for inputs, _ in BATCHES]
CALIBRATION = [samples(6, seed=5)[0]]
BITS = (2, 4)
SHORT = JointTraining(iterations=4, lr=0.1, batch_size=3)


def traced(model):
    return find_blocks(model, BATCH[0][:1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", ["residual", "tied", "depthwise"])
def test_kl_is_that_of_whole_networks(name, temperature):
    model = build(name)
    blocks, quantizer = traced(model), Uniform("minmax") if name == "depthwise" else LSQ()
    trials = Trials(model, blocks, [(x, None) for x in INPUTS], CALIBRATION, quantizer, temperature=temperature)
    found = kl_score(
        model, blocks, INPUTS, CALIBRATION, quantizer, activations=True, bit_widths=BITS, temperature=temperature
    )
    float_bits = Precision(FLOAT_BITS, FLOAT_BITS)
    for block in blocks:
        for kind in (WEIGHTS, ACTIVATIONS):
            if kind == ACTIVATIONS and not block.num_activations:
                assert block.name not in found.activations
                continue
            assert set(found.of(kind)[block.name]) == set(BITS)
            for bits, one in found.of(kind)[block.name].items():
                own = Precision(bits, FLOAT_BITS) if kind == WEIGHTS else Precision(FLOAT_BITS, bits)
                each = trials.measure({b.name: own if b is block else float_bits for b in blocks}).kl.tolist()
                assert one.value == pytest.approx(statistics.fmean(each), rel=1e-6, abs=1e-12)
                assert one.error == pytest.approx(statistics.stdev(each) / 3, rel=1e-6, abs=1e-12)
    assert (found.score, found.num_samples, found.one_factor) == ("kl", 9, False)
    assert found.seconds > 0 and found.gradient_equivalents > 0


def shift_by_hand(model, block, quantizer, bits):
    return torch.cat(
        [(quantized_weight(x, quantizer, bits) - x.weight.detach()).reshape(-1) for x in block_layers(model, block)]
    )


@pytest.mark.parametrize(("curvature", "explicit"), [("hessian", explicit_hessian), ("ggn", explicit_gauss_newton)])
@pytest.mark.parametrize("name", ["residual", "tied", "branches"])
def test_quadratic_is_that_of_the_explicit_matrix(name, curvature, explicit):
    model = build(name)
    blocks = traced(model)
    found = quadratic_score(model, blocks, BATCHES, F.cross_entropy, curvature=curvature, bit_widths=BITS)
    parts = [[i for i in range(9) if i % 8 == part] for part in range(8)] if name == "branches" else []
    for block in blocks:
        whole = explicit(model, block, BATCH, F.cross_entropy)
        each = [explicit(model, block, (BATCH[0][rows], BATCH[1][rows]), F.cross_entropy) for rows in parts]
        for bits, one in found.weights[block.name].items():
            shift = shift_by_hand(model, block, LSQ(), bits)
            assert one.value == pytest.approx(0.5 * float(shift @ whole @ shift), rel=1e-6, abs=1e-12)
            if each:
                values = [0.5 * float(shift @ matrix @ shift) for matrix in each]
                assert one.error == pytest.approx(statistics.stdev(values) / sqrt(8), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", [WEIGHTS, ACTIVATIONS])
def test_output_shift_by_hand(kind):
    """Two linear layers, each its own block: g and ΔY written out, one image after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double().eval()
    images, labels = torch.randn(6, 3, 3, 3).double(), torch.randint(3, (6,))
    batches, blocks = cut((images, labels), (4, 2)), find_blocks(model, images[:1])
    found = output_shift_score(model, blocks, batches, F.cross_entropy, [images], activations=True, bit_widths=BITS)
    first, last = model[1], model[3]
    y1 = first(images.flatten(1)).detach().requires_grad_()
    y2 = last(y1.relu()).detach().requires_grad_()
    (g2,) = torch.autograd.grad(F.cross_entropy(y2, labels, reduction="sum"), y2)
    (g1,) = torch.autograd.grad(F.cross_entropy(last(y1.relu()), labels, reduction="sum"), y1)
    entering = {"1": images.flatten(1), "3": y1.relu().detach()}
    for name, layer, slope in (("1", first, g1), ("3", last, g2)):
        for bits in BITS:
            if kind == WEIGHTS:
                change = entering[name] @ (quantized_weight(layer, LSQ(), bits) - layer.weight).T
            elif name == "1":
                assert "1" not in found.activations  # it reads the image
                continue
            else:
                made = LSQ().activation(bits)
                made.initialise(entering[name])
                change = (made(entering[name]) - entering[name]) @ layer.weight.T
            each = (slope * change).square().sum(1).tolist()
            one = found.of(kind)[name][bits]
            assert one.value == pytest.approx(statistics.fmean(each), rel=1e-9)
            assert one.error == pytest.approx(statistics.stdev(each) / sqrt(6), rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_forms_have_all_scores_and_stay_as_they_are(name):
    model = build(name)
    blocks, before = traced(model), {key: value.clone() for key, value in model.state_dict().items()}
    for table in all_scores(model, blocks, BATCHES):
        assert set(table.weights) == {block.name for block in blocks}
        assert any(one.value > 0 for row in table.weights.values() for one in row.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def all_scores(model, blocks, batches, conditions=None):
    inputs = [x for x, _ in batches]
    kept = {"bit_widths": BITS, "conditions": conditions}
    yield kl_score(model, blocks, inputs, CALIBRATION, activations=True, **kept)
    yield quadratic_score(model, blocks, batches, F.cross_entropy, **kept)
    yield output_shift_score(model, blocks, batches, F.cross_entropy, CALIBRATION, activations=True, **kept)
    kept["training"] = SHORT
    yield learned_steps_score(model, blocks, batches, F.cross_entropy, CALIBRATION, activations=True, **kept)


class Watched:
    """A progress that is killed at a certain step, and knows where each task began."""

    def __init__(self, tick=lambda *_: None):
        self.tick, self.begun = tick, []

    def task(self, title, total, *, done=0):
        self.begun.append((title, total, done))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, steps=1, note=""):
        self.tick()


@pytest.mark.parametrize("which", range(4), ids=["kl", "quadratic", "output_shift", "learned_steps"])
def test_a_killed_measurement_resumes_to_the_same_table(which):
    model = build("residual")
    blocks, checkpoint = traced(model), MemoryCheckpoint()
    score = (
        lambda conditions: kl_score(model, blocks, INPUTS, CALIBRATION, bit_widths=BITS, conditions=conditions),
        lambda conditions: quadratic_score(
            model, blocks, BATCHES, F.cross_entropy, bit_widths=BITS, conditions=conditions
        ),
        lambda conditions: output_shift_score(
            model, blocks, BATCHES, F.cross_entropy, CALIBRATION, bit_widths=BITS, conditions=conditions
        ),
        lambda conditions: learned_steps_score(
            model, blocks, BATCHES, F.cross_entropy, CALIBRATION, bit_widths=BITS, training=SHORT, conditions=conditions
        ),
    )[which]
    expected = score(Conditions())
    with pytest.raises(Killed):
        score(Conditions(checkpoint, 0.0, progress=Watched(kill_after(5))))
    resumed = Watched()
    assert score(Conditions(checkpoint, 0.0, progress=resumed)) == expected
    ((_, total, done),) = resumed.begun
    assert 0 < done < total


def shared_scores(parts: int):
    """The third of three processes has no images."""
    model = build("residual")
    own = [BATCHES[:1], BATCHES[1:], []][rank()] if parts > 1 else BATCHES
    return list(all_scores(model, traced(model), own))


@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_measures_what_one_alone_does(processes):
    alone = shared_scores(1)
    for tables in in_processes(processes, lambda: shared_scores(processes)):
        for table, expected in zip(tables, alone, strict=True):
            for kind in (WEIGHTS, ACTIVATIONS):
                for name, row in expected.of(kind).items():
                    for bits, one in row.items():
                        found = table.of(kind)[name][bits]
                        assert (found.value, found.error) == pytest.approx((one.value, one.error), rel=1e-6, abs=1e-9)
            assert table.num_samples == 9


def test_a_memory_limit_cuts_batches_and_changes_nothing():
    model = build("residual")
    blocks = traced(model)
    for limited, free in zip(
        all_scores(model, blocks, BATCHES, Conditions(memory_limit_gib=64.0)),
        all_scores(model, blocks, BATCHES),
        strict=True,
    ):
        for name, row in free.weights.items():
            for bits, one in row.items():
                assert limited.weights[name][bits].value == pytest.approx(one.value, rel=1e-6, abs=1e-12)
    with pytest.raises(UserError, match="memory_limit_gib"):
        kl_score(model, blocks, INPUTS, CALIBRATION, conditions=Conditions(memory_limit_gib=0.01))


def test_without_a_limit_little_free_memory_cuts_batches_and_changes_nothing(monkeypatch):
    """Every score, down to one sample at a time, where a limit of that size would be refused."""
    model = build("residual")
    blocks = traced(model)
    free = list(all_scores(model, blocks, BATCHES))
    largest: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: largest.append(len(inputs[0])))
    monkeypatch.setattr("hawq.curvature.memory.free_bytes", lambda device: (0.0, 1.0))
    monkeypatch.setattr("hawq.curvature.operator.is_scarce", lambda device: False)
    kl_score(model, blocks, INPUTS, CALIBRATION[:1])
    handle.remove()
    assert 1 in largest
    for spared, whole in zip(all_scores(model, blocks, BATCHES), free, strict=True):
        for name, row in whole.weights.items():
            for bits, one in row.items():
                assert spared.weights[name][bits].value == pytest.approx(one.value, rel=1e-6, abs=1e-12)


def test_the_hessian_of_the_distillation_loss_is_the_gauss_newton_matrix():
    model, loss = build("residual"), DistillationLoss(4.0)
    (batch,) = loss.batches(model, [BATCH[0]])
    assert loss(model(batch[0]), batch[1]).item() == pytest.approx(0, abs=1e-12)
    for block in traced(model):
        torch.testing.assert_close(
            explicit_hessian(model, block, batch, loss), explicit_gauss_newton(model, block, batch, loss)
        )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_mean_nothing_are_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature=.* is out of range"):
        DistillationLoss(temperature)


def test_outputs_that_are_no_distribution_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    inputs = torch.randn(4, 3)
    with pytest.raises(UserError, match="at least two classes"):
        kl_score(model, find_blocks(model, inputs[:1]), [inputs], [inputs])
    with pytest.raises(UserError, match="at least two classes"):
        DistillationLoss().batches(model, [inputs])


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform()], ids=lambda quantizer: quantizer.name)
def test_ranges_of_weights_are_chosen_once(quantizer, monkeypatch):
    """For each layer and bit-width, however often its weight is asked for; what comes is the caller's own."""
    model, chosen = build("residual"), []
    made = quantizer.weight(2)
    initialise = type(made).initialise
    monkeypatch.setattr(type(made), "initialise", lambda self, x: (chosen.append(self.bits), initialise(self, x))[1])
    quantized, layer = QuantizedWeights(quantizer), block_layers(model, find_blocks(model)[0])[0]
    first = quantized(layer, 3)
    first.zero_()
    assert torch.equal(quantized(layer, 3), quantized_weight(layer, quantizer, 3))
    assert not torch.equal(quantized(layer, 4), quantized(layer, 3)) and chosen == [3, 3, 4]
