"""`hawq.refine` and `hawq.search_plan` on a tiny network: what they state is what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import Fresh, batches_of, build

import hawq
from hawq.errors import UserError
from hawq.finetuning import FineTuning
from hawq.records import FLOAT_BITS, Sensitivity
from hawq.search import JointSteps, Judging
from hawq.trials import Trials, paired

SPACE = {"target": 4.0, "unit": "average_bits", "candidates": (2, 3, 4, 8), "activations": FLOAT_BITS}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build("residual", torch.float32)


@pytest.fixture(scope="module")
def sensitivity(model: torch.nn.Module) -> Sensitivity:
    batches = batches_of(1, 8)
    blocks = hawq.find_blocks(model, batches[0][0][:1])
    return hawq.analyze(model, blocks, batches, solver=hawq.GradientNorm())


IMAGES, OTHERS = batches_of(3, 8), batches_of(2, 16)
CALIBRATION = [inputs for inputs, _ in batches_of(1, 8)]


def test_a_refined_plan_states_what_is_measured(model: torch.nn.Module, sensitivity: Sensitivity) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allocator = hawq.IntegerProgram(**SPACE, refine=12)
    plan = hawq.refine(model, sensitivity, IMAGES, CALIBRATION, allocator, others=OTHERS)
    start, found = allocator.allocate(sensitivity), plan.searched
    soft = Trials(model, sensitivity.blocks, IMAGES, CALIBRATION, temperature=4.0)
    plain = Trials(model, sensitivity.blocks, OTHERS, CALIBRATION)
    for judged, trials in ((found.judged, soft), (found.others, plain)):
        values = [trials.measure(one.precisions).kl for one in (start, plan)]
        gain, error = paired(*values)
        assert (judged.start, judged.found) == pytest.approx([float(v.mean()) for v in values])
        assert (judged.gain, judged.error) == pytest.approx((gain, error))
    assert found.changes == 0 or found.judged.gain > 0
    assert 1 < found.evaluations <= 12 and all(use.slack >= 0 for use in plan.limits)
    assert plan.score == start.score and plan.objective >= start.objective
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_activations_may_be_chosen_too(model: torch.nn.Module, sensitivity: Sensitivity) -> None:
    blocks = sensitivity.blocks
    known = hawq.analyze(model, blocks, batches_of(1, 8), solver=hawq.GradientNorm(), activations=True)
    allocator = hawq.IntegerProgram(4.0, "average_bits", {"a_comp": 6.0}, activations="mixed", refine=8)
    plan = hawq.refine(model, known, torch.cat([inputs for inputs, _ in IMAGES]), CALIBRATION, allocator)
    assert all(use.slack >= 0 for use in plan.limits) and plan.searched.others is None


def test_a_start_of_the_users_own(model: torch.nn.Module, sensitivity: Sensitivity) -> None:
    allocator = hawq.IntegerProgram(**SPACE, refine=4)
    start = replace(allocator, score="error").allocate(sensitivity)
    plan = hawq.refine(model, sensitivity, IMAGES, CALIBRATION, allocator, start=start)
    assert plan.searched.judged.start is not None
    large = replace(allocator, target=8.0).allocate(sensitivity)
    with pytest.raises(UserError, match=r"start is over its limits \(8 average_bits, with target=4 \(average_bits\)\)"):
        hawq.refine(model, sensitivity, IMAGES, CALIBRATION, allocator, start=large)


def test_plans_may_be_trained_before_they_are_judged(model: torch.nn.Module, sensitivity: Sensitivity) -> None:
    allocator = hawq.RandomSearch(**SPACE, evaluations=1)
    steps = JointSteps(Fresh(IMAGES), 3, FineTuning(lr=0.05, batch_size=8))

    def value(judging: Judging) -> float:
        plan = hawq.search_plan(model, sensitivity, IMAGES, CALIBRATION, allocator, judging=judging)
        return plan.searched.judged.found

    plain, trained = value(Judging("loss")), value(Judging("loss", prepare=steps))
    assert trained < plain and value(Judging("loss", prepare=steps)) == trained
    with pytest.raises(UserError, match="judge=errors needs labels"):
        unlabelled = [inputs for inputs, _ in IMAGES]
        hawq.search_plan(model, sensitivity, unlabelled, CALIBRATION, allocator, judging=Judging("errors"))


@pytest.mark.parametrize("weight_quantizer", ["run", "kmeans"])
def test_haq_runs_on_a_network(model: torch.nn.Module, sensitivity: Sensitivity, weight_quantizer: str) -> None:
    allocator = hawq.Haq(**SPACE, evaluations=6, warmup=2, weight_quantizer=weight_quantizer)
    plan = hawq.search_plan(
        model, sensitivity, IMAGES, CALIBRATION, allocator, judging=Judging("errors"), others=OTHERS
    )
    assert plan.method == "HAQ" and plan.searched.judged.gain is None
    assert all(use.slack >= 0 for use in plan.limits)
    with pytest.raises(UserError, match="evaluations=6 plans are to be measured"):
        allocator.allocate(sensitivity)
