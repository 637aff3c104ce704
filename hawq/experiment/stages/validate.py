"""Validation: the true increase of the loss when each block alone is quantised, beside what each score predicted."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from hawq.experiment.artifacts import Artifact
from hawq.experiment.console import table
from hawq.experiment.run import Run
from hawq.experiment.stages.analysis import main_estimate, measured_curvature
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.files import write_whole
from hawq.measurement import measured
from hawq.quantization import weight_errors
from hawq.records import Sensitivity, dump_record, read_record, to_dict
from hawq.report import validation_figure, validation_rows
from hawq.sensitivity import block_weights
from hawq.validation import (
    PLAIN_ERROR,
    WEIGHTS,
    LossIncreases,
    Score,
    Validated,
    activation_scores,
    correlate,
    curvature_score,
    gradient_seconds,
    loss_increases,
)

_LESS = ("weighting", "gradients", "gain low", "gain high", "low", "high", "seconds")  # first, on a narrow console
INCREASES_SCHEMA = "hawq.loss_increases/1"
VALIDATION_SCHEMA = "hawq.validation/2"


def validate(run: Run, float_network: FloatNetwork, analysis: Sensitivity) -> Validated:
    """Truth, scores, and their rank correlation: file, table, figure.

    The increases are kept by themselves, and so is the analysis of each solver: a run with `solver=...` shares it.
    """
    wanted, seed = run.settings.validate, run.settings.options.seed
    truth = _truth(run, float_network)
    scores = _weight_scores(run, float_network, analysis)
    if run.settings.analysis.activations:
        scores += activation_scores(analysis.rows, wanted.bit_widths)
    correlations = correlate(truth.increases, scores, wanted.bit_widths, wanted.draws, seed)
    result = Validated(truth, tuple(scores), correlations)
    path = run.folder / "validation.json"
    write_whole(path, dump_record(VALIDATION_SCHEMA, result))
    run.log.table("validation", *validation_rows(result))
    run.log.image("figures/validation", validation_figure(result, run.folder / "figures" / "validation.png"))
    run.log.artifact(f"{run.folder.name}-validation", "validation", path)
    print(f"\nSpearman's ρ of each score with the true increase on {truth.num_samples} held-out images")
    print(table(*validation_rows(result), drop=_LESS) + "\n")
    return result


def _truth(run: Run, float_network: FloatNetwork) -> LossIncreases:
    activations = run.settings.analysis.activations
    reads = ("validate", "quantizer", "seed", *(("analysis",) if activations else ()))
    make = partial(_measure, run, activations)
    facts = {"activations": activations}
    artifact = cached(run, "validate", make, reads=reads, network=float_network.weights_hash, facts=facts)
    truth = read_record(artifact.path / "increases.json", INCREASES_SCHEMA, LossIncreases)
    for step, increase in enumerate(truth.increases):
        values = {key: value for key, value in to_dict(increase).items() if key not in ("block", "kind")}
        run.log.log("validate", step, values)
    return truth


def _measure(run: Run, activations: bool, settings: KeyedSettings, artifact: Artifact) -> Files:
    from hawq.data import fixed_batches, sample_indices

    inputs, wanted = run.inputs, settings.validate
    images = inputs.test_images()
    indices = sample_indices(len(images), wanted.num_samples, settings.seed)
    calibration = []
    if activations:
        analysed = settings.analysis
        calibration = inputs.calibration(analysed.num_samples, analysed.batch_size, settings.seed)
    truth = loss_increases(
        inputs.network,
        inputs.blocks,
        settings.quantizer,
        wanted.bit_widths,
        fixed_batches(images, indices, wanted.batch_size, inputs.device),
        partial(nn.functional.cross_entropy, reduction="none"),
        calibration,
        artifact.partial,
        wanted.save_every_seconds,
        run.progress,
    )
    return {"increases.json": dump_record(INCREASES_SCHEMA, truth)}


def _weight_scores(run: Run, float_network: FloatNetwork, analysis: Sensitivity) -> list[Score]:
    """The score of each solver, then the plain error. Each solver runs to its own end, on the weights alone."""
    settings, bit_widths = run.settings, run.settings.validate.bit_widths
    whole = dataclasses.replace(settings.analysis, activations=False, stop_when_settled=False)
    found, seconds = {}, {}
    for name, solver in settings.compared.items():
        own = run.with_settings(analysis=whole, solver=solver)
        found[name] = measured_curvature(own, float_network, f"analysis/{name}").estimates
        seconds[name] = run.records[-1].seconds
    with measured() as cost:
        errors = {
            block.name: weight_errors(block_weights(float_network.network, block), settings.quantizer, bit_widths)
            for block in run.inputs.blocks
        }
    unit = gradient_seconds(main for estimates in found.values() for main in map(main_estimate, estimates.values()))
    scores = [curvature_score(name, analysis.rows, found[name], bit_widths) for name in found]
    costs = {**seconds, PLAIN_ERROR: cost.seconds}
    return [
        dataclasses.replace(score, seconds=costs[score.name], gradient_equivalents=unit and costs[score.name] / unit)
        for score in (*scores, Score(PLAIN_ERROR, WEIGHTS, None, errors))
    ]
