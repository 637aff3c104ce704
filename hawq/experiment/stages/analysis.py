"""The analysis: curvature of every block, kept by itself, joined with the errors of the quantiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any

from hawq.allocation import IntegerProgram, is_proven
from hawq.components import component_facts
from hawq.curvature import Solver
from hawq.distributed import broadcast, broadcast_parameters
from hawq.experiment.artifacts import Artifact
from hawq.experiment.config.options import Settings
from hawq.experiment.console import LESS, table
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.experiment.stages.landscape import write_landscape
from hawq.files import write_whole
from hawq.progress import SILENT, Progress
from hawq.quantization import Quantizer
from hawq.records import (
    ACTIVATIONS,
    BEYOND_CURVATURE,
    SENSITIVITY_SCHEMA,
    WEIGHTS,
    Estimate,
    ScoreTable,
    Sensitivity,
    dump_record,
    parts_of,
    read_record,
)
from hawq.report import score_cost, sensitivity_rows
from hawq.resuming import Checkpoint
from hawq.scoring import Conditions, measure_score
from hawq.sensitivity import Analysis, Curvature, combine, labelled, measure_curvature

CURVATURE_SCHEMA, SCORE_SCHEMA = "hawq.curvature/2", "hawq.score/1"
CALIBRATION_BATCH = 64  # images; fixed, because the statistics of batch norm depend on it


def analysis(run: Run, float_network: FloatNetwork) -> Sensitivity:
    """λ_i or whatever the solver finds of every block, joined with the weight errors of this run's quantiser."""
    curvature = measured_curvature(run, float_network, "analysis")
    scores = [measured_score(run, float_network, name) for name in wanted_scores(run.settings)]
    sensitivity = _combined(run, curvature).with_scores(scores)
    write_whole(run.folder / "sensitivity.json", dump_record(SENSITIVITY_SCHEMA, sensitivity))
    if run.settings.analysis.landscape:
        write_landscape(run, float_network, sensitivity)
    if not run.wants("allocation"):
        print("\n" + table(*sensitivity_rows(sensitivity, None), drop=LESS))
    return sensitivity


def measured_curvature(run: Run, float_network: FloatNetwork, label: str) -> Curvature:
    """What the run's solver finds of every block; `label` tells this analysis from others of the same run.

    It depends neither on the quantiser nor on the budget, so another one of them does not repeat it.
    """
    settings = run.settings
    facts: dict[str, Any] = settings.analysis.loss_facts()
    if settings.analysis.stop_when_settled:  # the result then depends on what it was wanted for
        facts |= {"bits": component_facts(settings.bits), "quantizer": component_facts(settings.quantizer)}
    make, reads = partial(_measure, run, label), ("analysis", "solver", "seed")
    artifact = cached(run, "analysis", make, reads=reads, network=float_network.weights_hash, facts=facts, label=label)
    curvature = read_record(artifact.path / "curvature.json", CURVATURE_SCHEMA, Curvature)
    for index, block in enumerate(run.inputs.blocks):
        for main in list(curvature.estimates[block.name].values())[:1]:
            _log_estimate(run, label, index, main)
    return curvature


def main_estimate(estimates: Mapping[str, Estimate]) -> Estimate:
    """What a solver is for: it stands first."""
    return next(iter(estimates.values()))


def wanted_scores(settings: Settings) -> list[str]:
    """The scores to measure beside the curvature: those of the analysis, and the one that the bits are chosen by."""
    named = (*settings.analysis.scores, *parts_of(getattr(settings.bits, "score", "")))
    return [name for name in BEYOND_CURVATURE if name in named]


def measured_score(run: Run, float_network: FloatNetwork, score: str) -> ScoreTable:
    """One measured score of every block, kept by itself: it depends on the quantiser, and not on the solver."""
    label = f"analysis/{score}"
    facts = {"score": score, **_score_facts(run, score)}
    make, reads = partial(_measure_score, run, score), ("quantizer", "seed")
    artifact = cached(run, "analysis", make, reads=reads, network=float_network.weights_hash, facts=facts, label=label)
    table = read_record(artifact.path / "score.json", SCORE_SCHEMA, ScoreTable)
    print(score_cost(table))
    places = [(kind, row) for kind in (WEIGHTS, ACTIVATIONS) for row in table.of(kind).values()]
    for step, (bits, one) in enumerate((bits, one) for _, row in places for bits, one in row.items()):
        run.log.log(label, step, {"bits": bits, "value": one.value, "error": one.error})
    return table


def _score_facts(run: Run, score: str) -> dict[str, Any]:
    """What a score depends on beside quantiser and seed."""
    wanted, unlabelled = run.settings.analysis, run.inputs.unlabelled
    facts: dict[str, Any] = {"num_samples": wanted.num_samples, "activations": wanted.activations}
    if score == "kl":
        images = wanted.images if unlabelled is None else unlabelled.identity()
        return facts | {"images": images, "temperature": wanted.kl_temperature}
    if score == "quadratic":
        facts["curvature"] = run.settings.solver.curvature
    if score == "learned_steps":
        facts["training"] = dataclasses.asdict(wanted.joint_training(run.settings.options.seed))
    return facts | wanted.loss_facts()


def _measure_score(run: Run, score: str, settings: KeyedSettings, artifact: Artifact) -> Files:
    limit, wanted = run.settings.solver.memory_limit_gib, run.settings.analysis
    work = partial(
        shared_score,
        score=score,
        wanted=wanted,
        quantizer=settings.quantizer,
        curvature=run.settings.solver.curvature,
        memory_limit_gib=limit,
        seed=settings.seed,
    )
    table = broadcast(work)(run.inputs, checkpoint=artifact.partial, progress=run.progress)
    return {"score.json": dump_record(SCORE_SCHEMA, table)}


def shared_score(
    inputs: Inputs,
    score: str,
    wanted: Analysis,
    quantizer: Quantizer,
    curvature: str,
    memory_limit_gib: float | None,
    seed: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress = SILENT,
) -> ScoreTable:
    """A score of the first process' network. Every process calls this and reads its own share of the images."""
    broadcast_parameters(inputs.network)
    network, size = inputs.network.eval(), (wanted.num_samples, wanted.batch_size, seed)
    loss = wanted.loss_function()
    return measure_score(
        score,
        network,
        inputs.blocks,
        [] if score == "kl" else labelled(network, inputs.fixed_batches(*size), loss),
        loss,
        inputs.score_images(wanted.images, *size) if score == "kl" else [],
        inputs.calibration(wanted.num_samples, CALIBRATION_BATCH, seed),
        quantizer,
        curvature=curvature,
        activations=bool(wanted.activations),
        kl_temperature=wanted.kl_temperature,
        training=wanted.joint_training(seed),
        conditions=Conditions(checkpoint, wanted.save_every_seconds, memory_limit_gib, progress),
    )


def _measure(run: Run, label: str, settings: KeyedSettings, artifact: Artifact) -> Files:
    index_of = {block.name: index for index, block in enumerate(run.inputs.blocks)}
    work = partial(shared_curvature, solver=settings.solver, wanted=settings.analysis, seed=settings.seed)
    curvature = broadcast(work)(
        run.inputs,
        checkpoint=artifact.partial,
        settled=partial(_is_settled, run),
        on_estimate=lambda name, estimate: _log_estimate(run, label, index_of[name], estimate),
        warn=lambda text: print(f"note: {text}"),
        progress=run.progress,
    )
    return {"curvature.json": dump_record(CURVATURE_SCHEMA, curvature)}


def shared_curvature(
    inputs: Inputs,
    solver: Solver,
    wanted: Analysis,
    seed: int,
    checkpoint: Checkpoint | None = None,
    on_estimate: Callable[[str, Estimate], None] = lambda name, estimate: None,
    warn: Callable[[str], object] = lambda text: None,
    settled: Callable[[Curvature], bool] = lambda curvature: False,
    progress: Progress = SILENT,
) -> Curvature:
    """The curvature of the first process' network. Every process calls this and reads its own share of the samples."""
    broadcast_parameters(inputs.network)
    network, loss = inputs.network.eval(), wanted.loss_function()
    return measure_curvature(
        network,
        inputs.blocks,
        labelled(network, inputs.fixed_batches(wanted.num_samples, wanted.batch_size, seed), loss),
        loss,
        solver,
        seed,
        checkpoint,
        wanted.save_every_seconds,
        on_estimate,
        activations=wanted.activations,
        detached_bits=wanted.detached_bits,
        warn=warn,
        settled=settled,
        progress=progress,
    )


def _combined(run: Run, curvature: Curvature) -> Sensitivity:
    """The curvature beside the errors of the run's quantiser, and what the packed file holds beside the codes."""
    settings, inputs = run.settings, run.inputs
    wanted = settings.analysis
    activations = any("activation_trace" in estimates for estimates in curvature.estimates.values())
    images = inputs.calibration(wanted.num_samples, wanted.batch_size, settings.options.seed) if activations else []
    found = combine(inputs.network, inputs.blocks, curvature, settings.quantizer, images, run.progress)
    return dataclasses.replace(found, overhead_bytes=inputs.overhead_bytes)


def _is_settled(run: Run, curvature: Curvature) -> bool:
    """Whether the plan that was asked for is proven with what is known by now."""
    settings = run.settings
    bits = settings.bits
    if not settings.analysis.stop_when_settled or not isinstance(bits, IntegerProgram) or bits.activations == "mixed":
        return False
    if set(parts_of(bits.score)) & set(BEYOND_CURVATURE):  # which no curvature can settle
        return False
    if any(not isfinite(main.value + main.error) for main in map(main_estimate, curvature.estimates.values())):
        return False
    sensitivity = _combined(run, curvature)
    return is_proven(sensitivity, bits, bits.allocate(sensitivity))


def _log_estimate(run: Run, label: str, index: int, estimate: Estimate) -> None:
    values = {"curvature": estimate.value, "error": estimate.error, "products": estimate.products}
    run.log.log(label, index, values)
