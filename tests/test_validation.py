"""True rises of the loss, against counting by hand and quantising by hand; correlations, against SciPy."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch
from memory import Killed, MemoryCheckpoint
from networks import build, cut, samples
from scipy.stats import spearmanr
from sensitivities import full_sensitivity, made_sensitivity
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.quantization import LSQ, Uniform
from hawq.records import Estimate, from_dict, to_dict
from hawq.validation import (
    LossIncrease,
    LossIncreases,
    Score,
    Validated,
    Validation,
    activation_scores,
    correlate,
    curvature_score,
    gradient_seconds,
    loss_increases,
)

BATCH = samples(9)
BATCHES = cut(BATCH, (5, 4))
SPLIT_LOSS = partial(F.cross_entropy, reduction="none")
SETTINGS = {
    "num_samples": 2,
    "batch_size": 1,
    "bit_widths": (2,),
    "solvers": ("ggn",),
    "draws": 1,
    "save_every_seconds": 0.0,
}


def traced(model):
    return find_blocks(model, BATCH[0][:1])


def test_rises_counted_by_hand():
    """At 2 bits the step is 1 and 0.4 becomes 0; at 3 bits the step is ½ and it becomes ½; the rest stays."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.4], [0.0, -2.0]])
    inputs, labels = torch.tensor([[1.0, 1.0], [-1.0, 0.45], [1.0, -2.0]]), torch.tensor([0, 0, 1])
    quantizer = Uniform("minmax", "minmax", per_channel=False)
    batches = [(inputs[:2], labels[:2]), (inputs[2:], labels[2:])]
    found = loss_increases(model, find_blocks(model), quantizer, (2, 3), batches, lambda outputs, _: outputs[:, 0] ** 2)
    assert (found.num_samples, found.accuracy) == (3, 100)
    assert found.loss == pytest.approx((1.4**2 + 0.82**2 + 0.2**2) / 3)
    by_hand = {
        2: [1 - 1.4**2, 1 - 0.82**2, 1 - 0.2**2],
        3: [1.5**2 - 1.4**2, 0.775**2 - 0.82**2, 0 - 0.2**2],
    }
    for rise, (bits, differences) in zip(found.increases, by_hand.items(), strict=True):
        assert (rise.block, rise.kind, rise.bits) == ("0", "weights", bits)
        assert rise.loss == pytest.approx(statistics.fmean(differences), rel=1e-5)
        assert rise.loss_error == pytest.approx(statistics.stdev(differences) / sqrt(3), rel=1e-5)
    falls = [(rise.accuracy, rise.accuracy_error) for rise in found.increases]
    assert falls == [pytest.approx((100 / 3, 100 / 3)), (0, 0)]  # only at 2 bits the second image becomes class 1


@pytest.mark.parametrize("name", ["residual", "tied", "depthwise"])
@pytest.mark.parametrize("quantizer", [LSQ(), Uniform("minmax")], ids=lambda quantizer: quantizer.name)
@torch.no_grad()
def test_each_block_is_quantised_alone(name, quantizer):
    """Weights by functional_call, activations by a hook of the test's own."""
    model = build(name)
    blocks, (inputs, labels) = traced(model), BATCH
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = loss_increases(model, blocks, quantizer, (2, 4), BATCHES, SPLIT_LOSS, [inputs])
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    for rise in found.increases:
        block = next(block for block in blocks if block.name == rise.block)
        by_hand = weights_by_hand if rise.kind == "weights" else activations_by_hand
        outputs = by_hand(model, block, quantizer, rise.bits, inputs)
        differences = F.cross_entropy(outputs, labels, reduction="none") - losses
        assert rise.loss == pytest.approx(float(differences.mean()), rel=1e-9, abs=1e-12)
        assert rise.loss_error == pytest.approx(float(differences.std()) / 3, rel=1e-9, abs=1e-12)
    with_activations = [block.name for block in blocks if block.num_activations]
    assert [rise.block for rise in found.increases if rise.kind == "activations"] == sorted(
        2 * with_activations, key=with_activations.index
    )
    assert len(found.increases) == 2 * (len(blocks) + len(with_activations))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def weights_by_hand(model, block, quantizer, bits, inputs):
    known = dict(model.named_parameters())
    replaced = {}
    for layer in block.layers:
        if f"{layer}.weight" in known:
            made = quantizer.weight(bits)
            made.initialise(known[f"{layer}.weight"])
            replaced[f"{layer}.weight"] = made(known[f"{layer}.weight"])
    return functional_call(model, replaced, (inputs,))


@torch.no_grad()
def activations_by_hand(model, block, quantizer, bits, inputs):
    """Ranges from the float network; layers that read the image keep 8 bits."""
    layers, seen = dict(model.named_modules()), {}
    collectors = [
        layers[name].register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].clone())
        )
        for name in block.layers
    ]
    model(inputs)
    handles = []
    for collector, name in zip(collectors, block.layers, strict=True):
        collector.remove()
        made = quantizer.activation(8 if name in block.image_layers else bits)
        made.initialise(torch.cat([value.reshape(-1) for value in seen[name]]))
        handles.append(layers[name].register_forward_pre_hook(lambda _, given, made=made: (made(given[0]),)))
    outputs = model(inputs)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("trials", [1, 5, 6])
def test_killed_work_goes_on_block_by_block(trials):
    """3 blocks of 2 widths and the float network, 2 batches each; killed after that many finished trials."""
    model, checkpoint, calls = build("residual"), MemoryCheckpoint(), []

    def loss(outputs, labels):
        calls.append(1)
        if len(calls) == deadline:
            raise Killed
        return SPLIT_LOSS(outputs, labels)

    arguments = (model, traced(model), LSQ(), (2, 4), BATCHES, loss, (), checkpoint, 0.0)
    deadline = 2 * (1 + trials) + 1
    if trials < 6:
        with pytest.raises(Killed):
            loss_increases(*arguments)
    else:
        loss_increases(*arguments)
    assert checkpoint.num_saved == trials // 2
    calls.clear()
    deadline = 0
    expected = loss_increases(*arguments[:5], SPLIT_LOSS)
    assert loss_increases(*arguments) == expected
    assert len(calls) == 2 * (1 + 6 - trials // 2 * 2)


def test_loss_that_is_not_finite_is_told_with_its_block():
    def loss(outputs, labels):
        found = SPLIT_LOSS(outputs, labels)
        return found if torch.equal(outputs, model(BATCH[0])) else found * torch.nan

    model = build("residual")
    with pytest.raises(ValueError, match="weights of block 'stem' at 2 bits"):
        loss_increases(model, traced(model), LSQ(), (2,), [BATCH], loss)


def test_one_image_is_refused():
    model = build("mlp")
    with pytest.raises(ValueError, match="two held-out images"):
        loss_increases(model, traced(model), LSQ(), (2,), [samples(1)], SPLIT_LOSS)


def made_case(num_blocks, bit_widths, seed=0, extra=()):
    """Rises and scores that agree by and large: "noisy", the plain error, "perfect", and those of `extra`."""
    rng = np.random.default_rng(seed)
    names = [f"b{index}" for index in range(num_blocks)]
    truth = rng.lognormal(size=(num_blocks, len(bit_widths)))
    increases = [
        LossIncrease(name, "weights", bits, truth[i, j], 0.1, 0.0, 0.0)
        for i, name in enumerate(names)
        for j, bits in enumerate(bit_widths)
    ]
    values = {"noisy": truth * rng.lognormal(size=truth.shape), "error": rng.lognormal(size=truth.shape)}
    values |= {"perfect": truth**3, **dict(extra)}
    omegas = {
        name: {block: {bits: float(table[i, j]) for j, bits in enumerate(bit_widths)} for i, block in enumerate(names)}
        for name, table in values.items()
    }
    scores = [Score(name, "weights", None, own) for name, own in omegas.items()]
    return increases, scores, truth, values


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_blocks", "bit_widths"), [(11, (2, 4, 8)), (5, (3,))])
def test_correlations_and_intervals_are_those_of_scipy(num_blocks, bit_widths, seed):
    increases, scores, truth, values = made_case(num_blocks, bit_widths, seed)
    found = correlate(increases, scores, bit_widths, 40, seed)
    resamples = np.random.default_rng(seed).integers(num_blocks, size=(40, num_blocks))
    assert len(found) == 3 * (len(bit_widths) + 1)
    for row in found:
        columns = slice(None) if row.bits is None else [bit_widths.index(row.bits)]
        pairs = {name: (table[:, columns], truth[:, columns]) for name, table in values.items()}
        rho = {name: spearmanr(x.ravel(), y.ravel()).statistic for name, (x, y) in pairs.items()}
        drawn = {
            name: np.array([spearmanr(x[choice].ravel(), y[choice].ravel()).statistic for choice in resamples])
            for name, (x, y) in pairs.items()
        }
        assert row.num_points == truth[:, columns].size
        assert row.spearman == pytest.approx(rho[row.score])
        assert row.gain == pytest.approx(rho[row.score] - rho["error"])
        assert row.interval == pytest.approx(np.nanpercentile(drawn[row.score], (2.5, 97.5)))
        gains = drawn[row.score] - drawn["error"]
        assert row.gain_interval == pytest.approx(np.nanpercentile(gains, (2.5, 97.5)))
    perfect = [row for row in found if row.score == "perfect"]
    assert all((row.spearman, *row.interval) == pytest.approx((1, 1, 1)) for row in perfect)


def test_score_that_says_the_same_of_all_blocks_has_no_correlation():
    bit_widths = (2, 4)
    increases, scores, *_ = made_case(6, bit_widths, extra={"flat": np.ones((6, 2))}.items())
    flat = [row for row in correlate(increases, scores, bit_widths, 20, 0) if row.score == "flat"]
    assert {(row.spearman, row.interval, row.gain, row.gain_interval) for row in flat} == {(None,) * 4}


def test_score_of_a_solver_has_its_own_curvature_and_the_common_errors():
    rows = made_sensitivity([1.0, 2.0], [10, 20], [{2: 0.5, 4: 0.25}, {2: 8.0, 4: 2.0}]).rows
    found = {
        name: {"trace": Estimate(value, 0.0, 1, True), "eigenvalue": Estimate(9.0, 0.0, 1, True)}
        for name, value in (("b0", 30.0), ("b1", -1.0))
    }
    score = curvature_score("trace", rows, found, (2, 4))
    assert (score.name, score.kind, score.weighting) == ("trace", "weights", "trace")
    assert score.omegas == {"b0": {2: 1.5, 4: 0.75}, "b1": {2: 0.0, 4: 0.0}}


def omega_of_activations(row, bits):
    """HAWQ-V2, §3.5."""
    return max(row.activation_trace.value, 0) / row.block.num_activations * row.activation_errors[bits]


def test_scores_of_activations():
    stem, *rows = full_sensitivity(0, 4).rows
    stem = replace(stem, block=replace(stem.block, num_activations=0))  # reads the image alone: left out
    omega, error = activation_scores([stem, *rows], (2, 8))
    assert omega.omegas == {row.block.name: {bits: omega_of_activations(row, bits) for bits in (2, 8)} for row in rows}
    assert error.omegas == {row.block.name: {b: row.activation_errors[b] for b in (2, 8)} for row in rows}


def test_unit_of_cost():
    known = [Estimate(1, 0, 1, True, seconds, gradients) for seconds, gradients in ((2, 4), (3, 3), (8, 4))]
    assert gradient_seconds([*known, Estimate(1, 0, 1, True), Estimate(1, 0, 1, True, 0.0, None)]) == 1
    assert gradient_seconds([Estimate(1, 0, 1, True)]) is None


def test_round_trip():
    increases, scores, *_ = made_case(3, (2, 4))
    result = Validated(
        LossIncreases(3, 0.1, 99.0, tuple(increases)), tuple(scores), correlate(increases, scores, (2, 4), 5, 0)
    )
    assert from_dict(to_dict(result), Validated) == result


def test_settings_are_checked():
    assert Validation(**SETTINGS).bit_widths == (2,)
    for key, value in (("num_samples", 1), ("batch_size", 0), ("draws", 0), ("save_every_seconds", -1.0)):
        with pytest.raises(ValueError, match=f"{key}={value} is out of range"):
            Validation(**SETTINGS | {key: value})
    for key, value in (("bit_widths", (2, 2)), ("bit_widths", ()), ("solvers", ("ggn", "ggn")), ("solvers", ())):
        with pytest.raises(ValueError, match=rf"{key}=.* at least one, none twice"):
            Validation(**SETTINGS | {key: value})
    with pytest.raises(ValueError, match=r"bit_widths=\[2, 9\] is out of range: give some of"):
        Validation(**SETTINGS | {"bit_widths": (2, 9)})
