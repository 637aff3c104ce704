"""Whole plans of one size, measured without training and after a short joint training, beside all scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from hawq.allocation import allocate
from hawq.allocation.allocator import make_plan
from hawq.distributed import broadcast
from hawq.errors import UserError
from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.analysis import CALIBRATION_BATCH
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.finetune import shared_tuning, taught_by
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.records import PlanOutcome, Sensitivity, ValidatedPlans, dump_record, read_record, to_dict
from hawq.scoring import TEST
from hawq.trials import Trials
from hawq.validation import Compared, Plan, correlate_plans, measure_plans, outcome_of, plan_of, wanted_plans

OUTCOMES_SCHEMA, OUTCOME_SCHEMA = "hawq.plan_outcomes/1", "hawq.plan_outcome/1"
_ENDLESS = 10**6  # epochs: the number of steps decides


@dataclasses.dataclass(frozen=True)
class MeasuredPlans:
    """What plans do, and the float network on the same images: mean loss, accuracy in percent; as it is kept."""

    num_samples: int
    loss: float
    accuracy: float
    outcomes: tuple[PlanOutcome, ...]


def held_out_for_scores(run: Run) -> int:
    """How many test images a score was measured on, which no validation may then look at."""
    wanted = run.settings.analysis
    return len(run.inputs.held_out(wanted.num_samples, run.settings.options.seed)) if wanted.images == TEST else 0


def validation_indices(run: Run, num_samples: int, seed: int) -> list[int]:
    """Indices of test images, drawn by the seed, without those that a score was measured on."""
    from hawq.data import sample_indices

    count = len(run.inputs.splits.test_images)
    free = sample_indices(count, count, seed)[: count - held_out_for_scores(run)]
    return free[:num_samples]


def validated_plans(
    run: Run, float_network: FloatNetwork, analysis: Sensitivity, compared: Sequence[Compared]
) -> tuple[ValidatedPlans, ...]:
    """Random plans of one size with the ranks that each score gives them: untrained, and trained where asked for."""
    wanted, bits = run.settings.validate, run.settings.bits
    w_comp = wanted.target or allocate(analysis, bits).cost.w_comp
    try:
        plans = wanted_plans(wanted, bits, run.inputs.blocks, w_comp, run.settings.options.seed)
    except UserError as error:  # a target of the user's own was checked before any work
        print(f"note: no plans are validated, for the run's own plan leaves no choice: {error}")
        return ()
    if len(plans) < wanted.plans:
        print(f"note: there are {len(plans)} different plans of W-Comp {w_comp:.4g} within 1 %, not {wanted.plans}")
    trials = cache(partial(_make_trials, run))  # made when the first plan is to be measured
    found = _untrained(run, float_network, plans, trials)
    results = [_summary(run, w_comp, 0, found, compared)]
    if wanted.trained_plans:
        chosen = enumerate(plans[: wanted.trained_plans], start=1)
        trained = tuple(_trained(run, float_network, analysis, plan, number, trials) for number, plan in chosen)
        results.append(_summary(run, w_comp, wanted.steps, dataclasses.replace(found, outcomes=trained), compared))
    return tuple(results)


def _make_trials(run: Run) -> Trials:
    from hawq.data import fixed_batches

    inputs, settings, seed = run.inputs, run.settings, run.settings.options.seed
    indices = validation_indices(run, settings.validate.num_samples, seed)
    images = fixed_batches(inputs.test_images(), indices, settings.validate.batch_size, inputs.device)
    calibration = inputs.calibration(settings.analysis.num_samples, CALIBRATION_BATCH, seed)
    return Trials(inputs.network.eval(), inputs.blocks, images, calibration, settings.quantizer)


def _facts(run: Run) -> dict[str, Any]:
    """What every measurement of a plan depends on beside quantiser and seed."""
    images, calibration = run.settings.validate.num_samples, run.settings.analysis.num_samples
    return {"num_samples": images, "calibration": calibration, "held_out": held_out_for_scores(run)}


def _untrained(
    run: Run, float_network: FloatNetwork, plans: Sequence[Plan], trials: Callable[[], Trials]
) -> MeasuredPlans:
    """What each plan does without training; the plans are measured by the first process alone."""

    def make(settings: KeyedSettings, artifact: Artifact) -> Files:
        ready = trials()
        outcomes = measure_plans(ready, plans, artifact.partial, run.progress)
        assert ready.float.loss is not None and ready.float.accuracy is not None
        float_loss, accuracy = float(ready.float.loss.mean()), ready.float.accuracy
        found = MeasuredPlans(len(ready.float.loss), float_loss, accuracy, tuple(outcomes))
        return {"outcomes.json": dump_record(OUTCOMES_SCHEMA, found)}

    facts = {**_facts(run), "plans": [to_dict(plan) for plan in plans]}
    artifact = _kept(run, float_network, make, facts, ("quantizer", "seed"), "validate/plans")
    return read_record(artifact.path / "outcomes.json", OUTCOMES_SCHEMA, MeasuredPlans)


def _trained(
    run: Run,
    float_network: FloatNetwork,
    analysis: Sensitivity,
    plan: Plan,
    number: int,
    trials: Callable[[], Trials],
) -> PlanOutcome:
    """What one plan does after joint training; kept by itself, and so is the training until it is done."""
    steps, own = run.settings.validate.steps, run.settings.finetune
    own = dataclasses.replace(own, order="joint", epochs=_ENDLESS, max_steps=steps, evaluations=0)
    bit_plan = make_plan(analysis, plan, f"plan {number}", score="error")

    def make(settings: KeyedSettings, artifact: Artifact) -> Files:
        work = partial(
            shared_tuning,
            sensitivity=analysis,
            plan=bit_plan,
            settings=settings.finetune,
            quantizer=settings.quantizer,
            seed=settings.seed,
        )
        title = f"training plan {number} of {run.settings.validate.trained_plans}"
        network, _ = broadcast(work)(run.inputs, checkpoint=artifact.partial, progress=run.progress, title=title)
        return {"outcome.json": dump_record(OUTCOME_SCHEMA, outcome_of(trials(), plan, network))}

    facts = {**_facts(run), **taught_by(run), "trained": to_dict(plan)}
    changed = run.with_settings(finetune=own)
    reads = ("finetune", "quantizer", "seed")
    artifact = _kept(changed, float_network, make, facts, reads, f"validate/trained_{number}")
    return read_record(artifact.path / "outcome.json", OUTCOME_SCHEMA, PlanOutcome)


def _kept(
    run: Run,
    float_network: FloatNetwork,
    make: Callable[[KeyedSettings, Artifact], Files],
    facts: dict[str, Any],
    reads: Sequence[str],
    label: str,
) -> Artifact:
    return cached(run, "validate", make, reads=reads, network=float_network.weights_hash, facts=facts, label=label)


def _summary(run: Run, w_comp: float, steps: int, found: MeasuredPlans, compared: Sequence[Compared]) -> ValidatedPlans:
    """The outcomes of plans beside what each score predicted of them."""
    scores = tuple(one.of_plans([plan_of(outcome) for outcome in found.outcomes]) for one in compared)
    draws, seed = run.settings.validate.draws, run.settings.options.seed
    correlations = correlate_plans(found.outcomes, scores, draws, seed)
    about = (found.num_samples, found.loss, found.accuracy)
    for step, outcome in enumerate(found.outcomes):
        values = {key: value for key, value in to_dict(outcome).items() if key != "bits"}
        run.log.log("validate/trained" if steps else "validate/plans", step, values)
    return ValidatedPlans(w_comp, steps, *about, found.outcomes, scores, correlations)
