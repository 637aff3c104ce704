"""Whole plans of one size: how they are drawn, measured and ranked, against plain PyTorch, SciPy and counting."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MemoryCheckpoint
from networks import build, samples
from runs import finished, run_folder, run_here
from scipy.stats import spearmanr
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.quantization import quantize
from hawq.records import BitPlan, Block, PlanOutcome, PlanScore, ValidatedPlans
from hawq.report import plans_figure, validated_plans_table, verdict
from hawq.trials import Trials
from hawq.validation import (
    Validation,
    correlate_plans,
    measure_plans,
    plan_of,
    random_plans,
    read_validation,
)

BATCH = samples(9, torch.float32)


def block(name, size, **more):
    return Block(name=name, layers=(name,), num_weights=size, **more)


BLOCKS = [block("a", 400), block("b", 900, tie_group="t"), block("c", 900, tie_group="t"), block("d", 50, fixed_bits=8)]
BLOCKS += [block(f"e{index}", 100 * (1 + index)) for index in range(8)]


@settings(max_examples=25, deadline=None)
@given(st.floats(5.0, 14.0), st.integers(3, 20), st.integers(0, 99))
def test_plans_have_one_size_keep_ties_and_fixed_bits_and_differ(w_comp, count, seed):
    plans = random_plans(BLOCKS, w_comp, count, seed, candidates=(2, 3, 4, 6, 8), activations=4)
    assert plans == random_plans(BLOCKS, w_comp, count, seed, candidates=(2, 3, 4, 6, 8), activations=4)
    assert len(plans) == count == len({tuple(plan.items()) for plan in plans})
    for plan in plans:
        assert list(plan) == [one.name for one in BLOCKS]
        assert abs(32 * sum(b.num_weights for b in BLOCKS) / (w_comp * cost(plan)) - 1) < 0.0101
        assert plan["b"] == plan["c"] and plan["d"].weight_bits == 8
        assert {one.activation_bits for one in plan.values()} == {4}
        assert {one.weight_bits for one in plan.values()} <= {2, 3, 4, 6, 8}


def cost(plan):
    return sum(b.num_weights * plan[b.name].weight_bits for b in BLOCKS)


def test_a_size_that_too_few_plans_have_is_told():
    with pytest.raises(UserError, match=r"target=16 has 0 plans .* give a W-Comp well within 4 to 15\.6, or plans=0"):
        random_plans(BLOCKS, 16.0, 10, 0, candidates=(2, 3, 4, 6, 8))
    few = random_plans([block("a", 10), block("b", 10), block("c", 10)], 8.0, 10, 0, candidates=(3, 4, 5))
    assert len(few) == 7  # 4 4 4 and the orders of 3 4 5


def test_plans_are_measured_as_plain_pytorch_measures_them_and_resume():
    model = build("residual", torch.float32)
    blocks = find_blocks(model, BATCH[0][:1])
    plans = random_plans(blocks, 8.0, 3, 0, candidates=(2, 3, 4, 5, 6))
    calibration = [samples(6, torch.float32, seed=5)[0]]
    trials, checkpoint = Trials(model, blocks, [BATCH], calibration), MemoryCheckpoint()
    measure_plans(trials, plans[:2], checkpoint)
    found = measure_plans(trials, plans, checkpoint)
    assert checkpoint.num_saved == 3
    inputs, labels = BATCH
    for outcome, plan in zip(found, plans, strict=True):
        bit_plan = BitPlan(plan, "test", plan_cost(blocks, plan))
        with torch.no_grad():
            before, after = model(inputs).double(), quantize(model, blocks, bit_plan, calibration)(inputs).double()
        kl = F.kl_div(after.log_softmax(1), before.softmax(1), reduction="none").sum(1)
        rise = F.cross_entropy(after, labels, reduction="none") - F.cross_entropy(before, labels, reduction="none")
        fall = 100 * ((before.argmax(1) == labels).double() - (after.argmax(1) == labels).double())
        for name, each in (("kl", kl), ("loss", rise), ("accuracy", fall)):
            assert getattr(outcome, name) == pytest.approx(float(each.mean()), rel=1e-4, abs=1e-6)
            assert getattr(outcome, f"{name}_error") == pytest.approx(float(each.std()) / 3, rel=1e-4, abs=1e-6)
        assert plan_of(outcome) == plan and outcome.w_comp == pytest.approx(bit_plan.cost.w_comp)


def made(values, scores, steps=0):
    """A result whose plans have the given KL, and scores with the given predictions."""
    outcomes = tuple(PlanOutcome({"a": "4"}, 8.0, kl, 0.01, kl / 2, 0.01, 3 * kl, 0.1) for kl in values)
    found = tuple(PlanScore(name, f"bits.score={name}", tuple(own)) for name, own in scores.items())
    return ValidatedPlans(8.0, steps, 100, 0.1, 92.0, outcomes, found, correlate_plans(outcomes, found, 200, 0))


RNG = np.random.default_rng(0)
TRUTH = RNG.lognormal(size=40)
NOISE = {share: TRUTH ** (1 - share) * RNG.lognormal(size=40) ** share for share in (0.1, 0.12, 0.5, 0.8)}


def test_correlations_over_plans_are_those_of_scipy():
    scores = {"kl": NOISE[0.1], "trace": NOISE[0.5], "error": NOISE[0.8], "flat": np.ones(40)}
    result = made(TRUTH, scores)
    resamples = np.random.default_rng(0).integers(40, size=(200, 40))
    drawn = {
        name: np.array([spearmanr(own[choice], TRUTH[choice]).statistic for choice in resamples])
        for name, own in scores.items()
        if name != "flat"
    }
    assert len(result.correlations) == 12
    for found in result.correlations:
        if found.score == "flat":
            assert found.spearman is found.interval is found.gain is found.behind is None
            continue
        rho = {name: spearmanr(scores[name], TRUTH).statistic for name in drawn}  # loss and accuracy: the same ranks
        assert found.spearman == pytest.approx(rho[found.score])
        assert found.interval == pytest.approx(np.percentile(drawn[found.score], (2.5, 97.5)))
        assert found.gain == pytest.approx(rho[found.score] - rho["error"])
        assert found.gain_interval == pytest.approx(np.percentile(drawn[found.score] - drawn["error"], (2.5, 97.5)))
        assert found.behind == pytest.approx(rho["kl"] - rho[found.score])
        assert found.behind_interval == pytest.approx(np.percentile(drawn["kl"] - drawn[found.score], (2.5, 97.5)))


@pytest.mark.parametrize(
    ("scores", "steps", "told", "untold"),
    [
        (
            {"kl": TRUTH, "trace": NOISE[0.5], "error": NOISE[0.8]},
            0,
            ["without training, 40 plans rank kl best", "Proven worse"],
            ["Not told"],
        ),
        (
            {"kl": NOISE[0.1], "trace": NOISE[0.12], "error": NOISE[0.8]},
            0,
            ["Not told apart from it", "bits.score=", "Proven worse than the best: error ("],
            ["prove no"],
        ),
        (
            {"kl": NOISE[0.8], "error": NOISE[0.8] ** 2},
            390,
            ["after 390", "prove no score better", "bits.score=error is free"],
            [],
        ),
        ({"kl": NOISE[0.5], "error": TRUTH}, 0, ["prove no score", "best: error", "bits.score=error"], []),
        ({"kl": np.ones(40), "error": np.ones(40)}, 0, ["No score can be ranked"], []),
    ],
)
def test_what_is_said_of_the_scores(scores, steps, told, untold, tmp_path):
    result = made(TRUTH, scores, steps)
    text = verdict(result)
    assert all(one in text for one in told) and not any(one in text for one in untold), text
    assert text in validated_plans_table(result)
    assert plans_figure(result, tmp_path / "plans.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"plans": 2}, r"plans=2 is out of range: give 3 to"),
        ({"plans": 10, "trained_plans": 20}, r"trained_plans=20 is out of range: give at most plans=10"),
        ({"target": float("nan")}, r"target=nan is out of range"),
        ({"target": 40.0}, r"target=40.0 is out of range"),
        ({"activations": 16}, r"activations=16 is out of range"),
        ({"steps": 0}, r"steps=0 is out of range"),
        ({"scores": ("trace",)}, r"scores=\['trace'\] is out of range"),
    ],
)
def test_settings_are_checked(changed, told):
    given = {"num_samples": 2, "batch_size": 1, "bit_widths": (2,), "solvers": ("ggn",), "draws": 1}
    with pytest.raises(ValueError, match=told):
        Validation(**given, save_every_seconds=0.0, **changed)


def test_a_run_validates_plans_untrained_and_trained_once(tmp_path, capfd):
    few = (
        *("stages=[analysis,validate]", "analysis.num_samples=8", "validate.num_samples=20", "validate.bit_widths=[4]"),
        *("validate.solvers=[gradient]", "validate.scores=[output_shift]", "validate.draws=20"),
        *("validate.plans=4", "validate.target=8", "validate.trained_plans=3", "validate.steps=1"),
    )
    assert run_here(tmp_path, *few) is None
    folder = run_folder(tmp_path)
    result = read_validation(folder / "validation.json")
    assert [(one.steps, len(one.outcomes)) for one in result.plans] == [(0, 4), (1, 3)]
    assert all(abs(row.w_comp / 8 - 1) < 0.0101 for one in result.plans for row in one.outcomes)
    assert [row.bits for row in result.plans[1].outcomes] == [row.bits for row in result.plans[0].outcomes[:3]]
    assert {score.name for score in result.plans[0].scores} == {"gradient", "output_shift", "relative_error", "error"}
    assert all((folder / "figures" / f"{name}.png").is_file() for name in ("validation", "plans", "plans_trained"))
    assert len(finished(tmp_path, "validate")) == 1 + 1 + 3
    assert "On this network, after 1 joint training steps" in capfd.readouterr().out
    assert run_here(tmp_path, *few, "validate.draws=30") is None
    assert len(finished(tmp_path, "validate")) == 5


def test_files_of_the_former_schema_are_read(tmp_path):
    path = tmp_path / "validation.json"
    increase = {"block": "a", "kind": "weights", "bits": 2, "loss": 0.1, "loss_error": 0.0, "accuracy": 1.0}
    truth = {"num_samples": 3, "loss": 0.1, "accuracy": 90.0, "increases": [increase | {"accuracy_error": 0.1}]}
    path.write_text(json.dumps({"schema": "hawq.validation/2", "truth": truth, "scores": [], "correlations": []}))
    found = read_validation(path)
    assert found.plans == () and found.truth.increases[0].kl is None
