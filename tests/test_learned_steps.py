"""The score learned_steps, against roots of its gradient, a joint training in plain PyTorch, and whole networks."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import build, cut, samples
from runs import files_below, finished, read_json, run_folder, run_here
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.costs import plan_cost
from hawq.curvature import NoCurvature
from hawq.errors import UserError
from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, input_quantizer, quantize, weight_quantizer
from hawq.records import ACTIVATIONS, FLOAT_BITS, WEIGHTS, BitPlan, Precision
from hawq.scoring import Analysis, Conditions, JointTraining, learned_steps_score
from hawq.scoring.joint_networks import JointNetworks
from hawq.sensitivity import analyze

BATCH = samples(9)
BATCHES = cut(BATCH, (5, 4))
CALIBRATION = [samples(6, seed=5)[0]]


def squared_error(outputs, targets):
    return (outputs - targets).square().sum(1).mean()


@pytest.mark.parametrize("seed", range(2))
def test_one_linear_layer_learns_the_step_where_the_gradient_vanishes(seed):
    """At one bit the weights W do not move. With codes c = ±½ and inputs of second moment C the loss is
    tr (sc − W) C (sc − W)ᵀ, and LSQ's gradient by s that of its output by c − W/s inside the range, by c outside."""
    torch.manual_seed(seed)
    layer = nn.Linear(4, 3, bias=False).double()
    inputs = torch.randn(40, 4).double() @ torch.randn(4, 4).double()
    training = JointTraining(iterations=200, lr=0.1, batch_size=40)
    found = learned_steps_score(
        nn.Sequential(layer),
        find_blocks(nn.Sequential(layer), inputs[:1]),
        [(inputs, layer(inputs).detach())],
        squared_error,
        [inputs],
        LSQ(per_channel=False),
        bit_widths=(1,),
        training=training,
    )
    (one,) = (row[1] for row in found.weights.values())
    learned = [(one.value + sign * one.error) / 2 for sign in (-1, 1)]  # α = 2
    weight = layer.weight.detach()
    codes = weight.sign() / 2

    def slope(step, rows):
        second = rows.T @ rows / len(rows)
        inside = (weight.abs() <= step / 2).double()
        return float((2 * (step * codes - weight) @ second * (codes - inside * weight / step)).sum())

    def vanishes(step, rows):
        return slope(step * (1 - 1e-4), rows) < 0 < slope(step * (1 + 1e-4), rows)

    even, odd = inputs[0::2], inputs[1::2]
    low, high = learned
    assert (vanishes(low, even) and vanishes(high, odd)) or (vanishes(high, even) and vanishes(low, odd))
    assert high - low > 1e-3 * high


def by_hand(weight, step, low, high, bits):
    """LSQ as its paper writes it, by detached differences."""
    factor = (weight[0].numel() * max(2 ** (bits - 1) - 1, 1)) ** -0.5
    step = step.detach() + factor * (step - step.detach())
    ratio = weight / step
    ratio = torch.where(ratio < low, low, torch.where(ratio > high, high, ratio))
    half = low - low.floor()
    return (ratio + ((ratio - half).round() + half - ratio).detach()) * step


def test_joint_training_is_that_of_plain_pytorch():
    """Two layers at 1 to 3 bits: one loss, summed over the bit-widths, and one update by hand."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 30), nn.Tanh(), nn.Linear(30, 3)).double().eval()
    for layer in (model[1], model[3]):
        nn.init.normal_(layer.weight, std=0.1)
    blocks, bit_widths = find_blocks(model, BATCH[0][:1]), (1, 2, 3)
    settings = JointTraining(iterations=6, lr=0.2, batch_size=9)
    found = learned_steps_score(
        model, blocks, BATCHES, F.cross_entropy, CALIBRATION, bit_widths=bit_widths, training=settings
    )
    halves = []
    for half in (0, 1):
        images, labels = BATCH[0][half::2], BATCH[1][half::2]
        shared = [p.detach().clone().requires_grad_() for p in model.parameters()]
        steps, limits = {}, {}
        for bits in bit_widths:
            for layer in (0, 1):
                made = LSQ().weight(bits)
                made.channel_axis = 0
                made.initialise(shared[2 * layer].detach())
                steps[layer, bits] = made.scale.detach().clone().requires_grad_()
                limits[layer, bits] = made.low, made.high
                codes = shared[2 * layer].detach() / made.scale
                assert not torch.isclose(codes, made.low).any() and not torch.isclose(codes, made.high).any()  # no ties
        trained = [*shared, *steps.values()]
        momenta = [torch.zeros_like(p) for p in trained]
        for iteration in range(settings.iterations):
            total = 0
            for bits in bit_widths:
                w1, b1, w2, b2 = shared if bits > 1 else [p.detach() for p in shared]
                q1, q2 = (
                    by_hand(w, steps[layer, bits], *limits[layer, bits], bits) for layer, w in enumerate((w1, w2))
                )
                hidden = torch.tanh(images.flatten(1) @ q1.T + b1)
                total = total + F.cross_entropy(hidden @ q2.T + b2, labels)
            lr = settings.lr * (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
            gradients = torch.autograd.grad(total, trained)
            length = math.sqrt(sum(float(g.square().sum()) for g in gradients[:4]))
            assert length > 1 or iteration
            for p, momentum, gradient in zip(trained, momenta, gradients, strict=True):
                most = p.detach().abs() / 10
                clipped = (
                    gradient / max(length, 1) if any(p is one for one in shared) else torch.clamp(gradient, -most, most)
                )
                momentum.mul_(0.9).add_(clipped)
                p.data -= lr * momentum
        halves.append({key: 2 * float(step.detach().mean()) for key, step in steps.items()})
    for layer, name in enumerate(("1", "3")):
        for bits in bit_widths:
            first, second = (half[layer, bits] for half in halves)
            one = found.weights[name][bits]
            assert one.value == pytest.approx((first + second) / 2, rel=1e-7)
            assert one.error == pytest.approx(abs(first - second) / 2, rel=1e-4)
    assert (found.score, found.num_samples, found.one_factor) == ("learned_steps", 9, False)
    assert found.seconds > 0 and found.gradient_equivalents > 0


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("name", ["residual", "tied", "depthwise"])
def test_copies_are_whole_quantised_networks_that_share_their_weights(name, activations):
    model = build(name)
    blocks, bit_widths = find_blocks(model, BATCH[0][:1]), (2, 4)
    networks = JointNetworks(model, blocks, bit_widths, CALIBRATION, LSQ(residuals=8), activations=activations)
    steps = networks.steps()
    for bits in bit_widths:
        precisions = {block.name: Precision(bits, bits if activations else FLOAT_BITS) for block in blocks}
        plan = BitPlan(precisions, "uniform", plan_cost(blocks, precisions))
        whole = quantize(model, blocks, plan, CALIBRATION, LSQ()).eval()
        own = [p.requires_grad_() for p in whole.parameters()]
        expected = F.cross_entropy(whole(BATCH[0]), BATCH[1])
        slopes = torch.autograd.grad(expected, own, allow_unused=True, materialize_grads=True)
        found, *gradient = networks.gradient(bits, BATCHES, F.cross_entropy, 9)
        assert float(found) == pytest.approx(expected.item(), rel=1e-9)
        lengths = (torch.cat([x.reshape(-1) for x in one]).sort().values for one in (gradient, slopes))
        torch.testing.assert_close(*lengths, rtol=1e-7, atol=1e-10)
        for block in blocks:
            layers = [whole.get_submodule(layer) for layer in block.layers]
            grids = {id(weight_quantizer(layer)): weight_quantizer(layer) for layer in layers}
            by_layers = sum(float(grid.scale.detach().mean()) for grid in grids.values())
            assert steps[block.name, WEIGHTS, bits] == pytest.approx(by_layers)
            if activations and block.num_activations:
                named = [x for x, layer in zip(layers, block.layers, strict=True) if layer not in block.image_layers]
                by_inputs = sum(float(input_quantizer(layer).scale.detach()) for layer in named)
                assert steps[block.name, ACTIVATIONS, bits] == pytest.approx(by_inputs)
    two, four = networks.trained[2], networks.trained[4]
    weights = {id(p) for p in two} & {id(p) for p in four}
    assert len(weights) == sum(p.dim() > 1 or "bn" not in path for path, p in model.named_parameters())
    assert len(networks.parameters) == len({id(p) for p in (*two, *four)})


def test_the_order_of_the_images_follows_the_seed():
    model = build("residual")
    blocks = find_blocks(model, BATCH[0][:1])

    def measured(seed):
        training = JointTraining(iterations=3, lr=0.1, batch_size=2, seed=seed)
        kept = {"bit_widths": (2, 4), "training": training}
        return learned_steps_score(model, blocks, BATCHES, F.cross_entropy, CALIBRATION, **kept)

    assert measured(0) == measured(0) != measured(1)


class Ticking:
    """A progress that calls a function at every iteration."""

    def __init__(self, tick):
        self.advance = lambda *_: tick()

    @contextmanager
    def task(self, title, total, *, done=0):
        yield self


@pytest.mark.parametrize("killed_at", [1, 3, 4, 6])
def test_a_killed_training_goes_on_bit_for_bit(killed_at):
    """In float32, in either half and between them."""
    model = build("residual", torch.float32)
    batch, calibration = samples(9, torch.float32), [CALIBRATION[0].float()]
    blocks, checkpoint = find_blocks(model, batch[0][:1]), MemoryCheckpoint()

    def measured(conditions):
        kept = {"bit_widths": (1, 3), "training": JointTraining(iterations=3, lr=0.1, batch_size=2)}
        return learned_steps_score(
            model, blocks, [batch], F.cross_entropy, calibration, activations=True, conditions=conditions, **kept
        )

    expected = measured(Conditions())
    with pytest.raises(Killed):
        measured(Conditions(checkpoint, 0.0, progress=Ticking(kill_after(killed_at))))
    kept = checkpoint.load()["further"]
    assert 3 * kept["half"] + kept["iteration"] == killed_at
    assert measured(Conditions(checkpoint, 0.0)) == expected


def test_labels_or_none():
    """Under distillation labels are not looked at, and steps are learned all the same."""
    model, (inputs, labels) = build("residual"), BATCH
    blocks = find_blocks(model, inputs[:1])

    def measured(data, loss, lr=0.1):
        training = JointTraining(iterations=3, lr=lr)
        kept = {"solver": NoCurvature(), "scores": ("learned_steps",), "training": training}
        return analyze(model, blocks, data, loss, **kept).table("learned_steps")

    taught, start = (measured([inputs], "distillation", lr) for lr in (0.1, 1e-12))
    assert taught == measured([(inputs, labels)], "distillation")
    assert taught != measured([(inputs, labels)], F.cross_entropy)
    for name, row in taught.weights.items():
        assert abs(row[2].value / start.weights[name][2].value - 1) > 1e-4 and row[2].error > 0


@pytest.mark.parametrize("quantizer", [Uniform(), DoReFa(), PACT(), RVQuant()], ids=lambda one: one.name)
def test_quantisers_without_trained_steps_are_refused(quantizer):
    model = build("mlp")
    with pytest.raises(UserError, match=f"quantizer={quantizer.name} trains no steps.*: give quantizer=lsq, or .* kl"):
        learned_steps_score(model, find_blocks(model, BATCH[0][:1]), BATCHES, F.cross_entropy, CALIBRATION, quantizer)


def test_a_loss_that_is_not_finite_is_told_with_its_remedy():
    model, calls = build("mlp"), []

    def measured(fails_from):
        def loss(outputs, targets):
            calls.append(0)
            return F.cross_entropy(outputs, targets) / (len(calls) < fails_from)

        calls.clear()
        blocks = find_blocks(model, BATCH[0][:1])
        return learned_steps_score(model, blocks, [BATCH], loss, CALIBRATION, bit_widths=(2,))

    with pytest.raises(UserError, match="not finite: nothing can be learned, check the weights"):
        measured(1)
    with pytest.raises(UserError, match=r"diverged in iteration \d+ of 50 .* 0.01: .* learned_steps_lr=0.001"):
        measured(8)


@pytest.mark.parametrize("fits", [4, 0])
def test_where_memory_runs_out_batches_become_smaller(fits):
    """Trials work on at most 4 images; those here are trained 5 and 4 at a time."""
    model, largest = build("residual"), []

    def measured(most):
        def loss(outputs, targets):
            largest.append(len(outputs))
            if len(outputs) > most and (most or len(largest) > 2):
                raise RuntimeError("out of memory")
            return F.cross_entropy(outputs, targets)

        blocks, kept = find_blocks(model, BATCH[0][:1]), {"bit_widths": (2,), "training": JointTraining(3, lr=0.1)}
        return learned_steps_score(model, blocks, [BATCH], loss, CALIBRATION, **kept)

    if not fits:
        with pytest.raises(UserError, match="memory runs out with a single image in a batch: use a smaller input"):
            measured(0)
        return
    expected, found = measured(9), measured(fits)
    assert 5 in largest and largest.count(1) == 3
    for name, row in expected.weights.items():
        assert (found.weights[name][2].value, found.weights[name][2].error) == pytest.approx(
            (row[2].value, row[2].error), rel=1e-9
        )


def test_a_single_image_is_refused():
    model = build("mlp")
    with pytest.raises(UserError, match="at least two images"):
        learned_steps_score(
            model, find_blocks(model, BATCH[0][:1]), cut(samples(1), (1,)), F.cross_entropy, CALIBRATION
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [("iterations", 0), ("iterations", 10**7), ("lr", 0.0), ("lr", math.nan), ("lr", 2.0), ("batch_size", 0)],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^{field}=.* is out of range: give"):
        JointTraining(**{field: value})
    with pytest.raises(ValueError, match=rf"^learned_steps_{field}=.* is out of range: give"):
        Analysis(**{f"learned_steps_{field}": value})


def test_every_setting_reaches_the_training():
    given = {"iterations": 3, "lr": 0.5, "batch_size": 7}
    asked = Analysis(**{f"learned_steps_{name}": value for name, value in given.items()})
    assert asked.joint_training(11) == JointTraining(**given, seed=11)
    assert Analysis().joint_training(0) == JointTraining()


SHORT = ("bits.score=learned_steps", "analysis.learned_steps_iterations=1", "stages=[analysis,allocation]")


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (("analysis.learned_steps_lr=0.02",), 1),
        (("analysis.kl_temperature=1", "analysis.batch_size=8"), 0),
    ],
)
def test_a_run_chooses_bits_by_it_and_keeps_it_by_its_own_settings(tmp_path_factory, changed, again):
    outputs = tmp_path_factory.getbasetemp() / "learned_steps"
    assert run_here(outputs, *SHORT) is None
    before = len(finished(outputs, "analysis"))
    assert run_here(outputs, *SHORT, *changed) is None
    assert len(finished(outputs, "analysis")) == before + again


def test_validate_compares_it_where_asked(tmp_path):
    asked = ("validate.scores=[learned_steps]", "validate.solvers=[gradient]", "validate.plans=0", "validate.draws=20")
    few = ("analysis.learned_steps_iterations=1", "validate.num_samples=8", "validate.bit_widths=[2,4]")
    assert run_here(tmp_path, "stages=[analysis,validate]", *asked, *few) is None
    scores = read_json(run_folder(tmp_path) / "validation.json")["scores"]
    assert "learned_steps" in {score["name"] for score in scores}


@pytest.mark.parametrize(
    "asked",
    [
        ("bits.score=learned_steps",),
        ("analysis.scores=[learned_steps]",),
        ("validate.scores=[learned_steps]", "stages=[analysis,validate]"),
    ],
)
def test_a_run_with_such_a_quantiser_is_refused_before_any_work(tmp_path, asked):
    assert "quantizer=uniform trains no steps" in (run_here(tmp_path, "quantizer=uniform", *asked) or "")
    assert not files_below(tmp_path / "cache")
