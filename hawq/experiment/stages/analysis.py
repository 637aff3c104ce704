"""The analysis: curvature of every block, kept by itself, joined with the errors of the quantiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any

from torch import nn

from hawq.allocation import IntegerProgram, is_proven
from hawq.components import component_facts
from hawq.curvature import CurvatureCheckpoint, Solver
from hawq.distributed import broadcast, broadcast_parameters
from hawq.experiment.artifacts import Artifact
from hawq.experiment.console import LESS, table
from hawq.experiment.prepare import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.experiment.stages.landscape import write_landscape
from hawq.files import write_whole
from hawq.progress import SILENT, Progress
from hawq.records import SENSITIVITY_SCHEMA, Estimate, Sensitivity, dump_record, read_record
from hawq.report import sensitivity_rows
from hawq.sensitivity import Analysis, Curvature, combine, measure_curvature

CURVATURE_SCHEMA = "hawq.curvature/2"


def analysis(run: Run, float_network: FloatNetwork) -> Sensitivity:
    """λ_i or whatever the solver finds of every block, joined with the weight errors of this run's quantiser."""
    curvature = measured_curvature(run, float_network, "analysis")
    sensitivity = _combined(run, curvature)
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
    facts: dict[str, Any] = {}
    if settings.analysis.stop_when_settled:  # the result then depends on what it was wanted for
        facts = {"bits": component_facts(settings.bits), "quantizer": component_facts(settings.quantizer)}
    make, reads = partial(_measure, run, label), ("analysis", "solver", "seed")
    artifact = cached(run, "analysis", make, reads=reads, network=float_network.weights_hash, facts=facts, label=label)
    curvature = read_record(artifact.path / "curvature.json", CURVATURE_SCHEMA, Curvature)
    for index, block in enumerate(run.inputs.blocks):
        _log_estimate(run, label, index, main_estimate(curvature.estimates[block.name]))
    return curvature


def main_estimate(estimates: Mapping[str, Estimate]) -> Estimate:
    """What a solver is for: it stands first."""
    return next(iter(estimates.values()))


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
    checkpoint: CurvatureCheckpoint | None = None,
    on_estimate: Callable[[str, Estimate], None] = lambda name, estimate: None,
    warn: Callable[[str], object] = lambda text: None,
    settled: Callable[[Curvature], bool] = lambda curvature: False,
    progress: Progress = SILENT,
) -> Curvature:
    """The curvature of the first process' network. Every process calls this and reads its own share of the samples."""
    broadcast_parameters(inputs.network)
    return measure_curvature(
        inputs.network.eval(),
        inputs.blocks,
        inputs.fixed_batches(wanted.num_samples, wanted.batch_size, seed),
        nn.functional.cross_entropy,
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
    found = combine(inputs.network, inputs.blocks, curvature, settings.quantizer, images)
    return dataclasses.replace(found, overhead_bytes=inputs.overhead_bytes)


def _is_settled(run: Run, curvature: Curvature) -> bool:
    """Whether the plan that was asked for is proven with what is known by now."""
    settings = run.settings
    bits = settings.bits
    if not settings.analysis.stop_when_settled or not isinstance(bits, IntegerProgram) or bits.activations == "mixed":
        return False
    if any(not isfinite(main.value + main.error) for main in map(main_estimate, curvature.estimates.values())):
        return False
    sensitivity = _combined(run, curvature)
    return is_proven(sensitivity, bits, bits.allocate(sensitivity))


def _log_estimate(run: Run, label: str, index: int, estimate: Estimate) -> None:
    values = {"curvature": estimate.value, "error": estimate.error, "products": estimate.products}
    run.log.log(label, index, values)
