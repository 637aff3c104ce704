"""A plan that is found by measuring plans: kept in the cache, resumed where it was left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hawq.allocation import IntegerProgram, allocate
from hawq.errors import UserError
from hawq.experiment.artifacts import Artifact
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.records import PLAN_SCHEMA, BitPlan, Sensitivity, dump_record, read_record, to_dict

if TYPE_CHECKING:
    from torch import Tensor

    from hawq.search import Search

_OTHER_SEED = 1  # more than the run's, so that plans are judged on other images than the analysis saw


def searched_plan(run: Run, float_network: FloatNetwork, analysis: Sensitivity) -> BitPlan:
    """The plan that the run's measuring allocator finds, made now unless it is in the cache."""
    from hawq.data.splits import identity_of

    bits, settings = run.settings.bits, run.settings
    facts: dict[str, Any] = {
        "blocks_with_bits": [to_dict(block) for block in analysis.blocks],
        "overhead_bytes": analysis.overhead_bytes,
    }
    if isinstance(bits, IntegerProgram):  # what it begins from, and what orders its swaps
        table = analysis.table(analysis.score_name(bits.score))
        facts |= {"start": to_dict(allocate(analysis, bits).precisions), "predicted": to_dict(table)}
    if run.inputs.judging is not None:
        facts["judging"] = identity_of(run.inputs.judging[0])
    reads = ("bits", "search", "quantizer", "seed", *(("finetune",) if settings.search.steps else ()))
    make = partial(_search, run, analysis)
    artifact = cached(run, "allocation", make, reads=reads, network=float_network.weights_hash, facts=facts)
    return read_record(artifact.path / "plan.json", PLAN_SCHEMA, BitPlan)


def _search(run: Run, analysis: Sensitivity, settings: KeyedSettings, artifact: Artifact) -> Files:
    from hawq.search import Judging, search_plan

    inputs, wanted, seed = run.inputs, settings.search, settings.seed
    images = _judging_images(inputs, wanted, seed)
    plan = search_plan(
        inputs.network.eval(),
        analysis,
        images,
        inputs.calibration(wanted.calibration_images, wanted.batch_size, seed),
        settings.bits,
        judging=Judging(
            wanted.judge,
            wanted.temperature,
            _preparation(inputs, settings),
            wanted.about(sum(len(batch) for batch, _ in images)),
            wanted.standard_errors,
        ),
        others=_other_images(inputs, wanted, seed),
        quantizer=settings.quantizer,
        checkpoint=artifact.partial,
        save_every_seconds=wanted.save_every_seconds,
        progress=run.progress,
    )
    return {"plan.json": dump_record(PLAN_SCHEMA, plan)}


def _preparation(inputs: Inputs, settings: KeyedSettings) -> Any:
    """What happens to a quantised network before it is measured."""
    from hawq.search import JointSteps

    steps = settings.search.steps
    if not steps:
        return lambda network: None
    data = inputs.training_data(settings.finetune.batch_size, settings.seed)
    return JointSteps(data, steps, settings.finetune, settings.seed)


def _judging_images(inputs: Inputs, wanted: Search, seed: int) -> list[tuple[Tensor, Tensor | None]]:
    """Batches that plans are judged on, drawn by the seed. Raises UserError for fewer than two images."""
    from hawq.data import fixed_batches, sample_indices

    if inputs.judging is None:
        return list(inputs.fixed_batches(wanted.num_images, wanted.batch_size, seed + _OTHER_SEED))
    stored, labels = inputs.judging
    if len(stored) < 2:
        raise UserError(f"images={wanted.images} has {len(stored)} image: give at least two")
    images = inputs.as_inputs(stored, labels)
    indices = sample_indices(len(images), wanted.num_images, seed)
    batches = fixed_batches(images, indices, wanted.batch_size, inputs.device)
    return [(batch, given if labels is not None else None) for batch, given in batches]


def _other_images(inputs: Inputs, wanted: Search, seed: int) -> list[Any]:
    """Test images, without their labels, on which the result is measured again."""
    from hawq.data import fixed_batches, sample_indices

    images = inputs.test_images()
    indices = sample_indices(len(images), wanted.other_images, seed)
    if len(indices) < 2:
        return []
    return [(batch, None) for batch, _ in fixed_batches(images, indices, wanted.batch_size, inputs.device)]
