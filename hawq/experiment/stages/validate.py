"""Validation: what quantising single blocks and whole plans truly does, beside what each score predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from torch import nn

from hawq.experiment.artifacts import Artifact
from hawq.experiment.console import table
from hawq.experiment.run import Run
from hawq.experiment.stages.analysis import CALIBRATION_BATCH, main_estimate, measured_curvature, measured_score
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.experiment.stages.validate_plans import held_out_for_scores, validated_plans, validation_indices
from hawq.files import write_whole
from hawq.measurement import measured
from hawq.quantization import weight_errors
from hawq.records import BEYOND_CURVATURE, KL_AND_TRACE, Sensitivity, dump_record, read_record, to_dict
from hawq.report import (
    plans_figure,
    validated_plans_rows,
    validation_figure,
    validation_rows,
    verdict,
)
from hawq.sensitivity import block_weights
from hawq.validation import (
    ACTIVATIONS,
    PLAIN_ERROR,
    VALIDATION_SCHEMA,
    WEIGHTS,
    Compared,
    LossIncreases,
    Score,
    Validated,
    activation_scores,
    compared_curvature,
    correlate,
    gradient_seconds,
    loss_increases,
)

_LESS = ("weighting", "gradients", "gain low", "gain high", "low", "high", "seconds")  # first, on a narrow console
INCREASES_SCHEMA = "hawq.loss_increases/2"


def validate(run: Run, float_network: FloatNetwork, analysis: Sensitivity) -> Validated:
    """Truth, scores, and their rank correlation, over single blocks and over whole plans: file, tables, figures.

    Each measurement is kept by itself, and so is the analysis of each solver: a run with `solver=...` shares it.
    """
    wanted, seed = run.settings.validate, run.settings.options.seed
    truth = _truth(run, float_network)
    compared = _compared(run, float_network, analysis)
    scores = [one.of_blocks(WEIGHTS, wanted.bit_widths) for one in compared]
    if run.settings.analysis.activations:
        scores += _activation_scores(run, analysis, compared)
    correlations = correlate(truth.increases, scores, wanted.bit_widths, wanted.draws, seed)
    plans = validated_plans(run, float_network, analysis, compared) if wanted.plans else ()
    result = Validated(truth, tuple(scores), correlations, plans)
    path = run.folder / "validation.json"
    write_whole(path, dump_record(VALIDATION_SCHEMA, result))
    run.log.table("validation", *validation_rows(result))
    run.log.image("figures/validation", validation_figure(result, run.folder / "figures" / "validation.png"))
    for one in plans:
        name = "plans_trained" if one.steps else "plans"
        run.log.table(f"validation_{name}", *validated_plans_rows(one))
        run.log.image(f"figures/{name}", plans_figure(one, run.folder / "figures" / f"{name}.png"))
    run.log.artifact(f"{run.folder.name}-validation", "validation", path)
    print(f"\nSpearman's ρ of each score with the true increase on {truth.num_samples} held-out images")
    print(table(*validation_rows(result), drop=_LESS) + "\n")
    for one in plans:
        trained = f"after {one.steps} joint training steps" if one.steps else "without training"
        print(f"Spearman's ρ of each score over {len(one.outcomes)} random plans of W-Comp {one.w_comp:.4g}, {trained}")
        print(f"{table(*validated_plans_rows(one), drop=_LESS)}\n{verdict(one)}\n")
    return result


def _truth(run: Run, float_network: FloatNetwork) -> LossIncreases:
    activations = bool(run.settings.analysis.activations)
    reads = ("validate", "quantizer", "seed", *(("analysis",) if activations else ()))
    make = partial(_measure, run, activations)
    facts = {"activations": activations, "truth": "kl", "calibration": run.settings.analysis.num_samples}
    facts |= {"held_out": held_out_for_scores(run)}
    artifact = cached(run, "validate", make, reads=reads, network=float_network.weights_hash, facts=facts)
    truth = read_record(artifact.path / "increases.json", INCREASES_SCHEMA, LossIncreases)
    for step, increase in enumerate(truth.increases):
        values = {key: value for key, value in to_dict(increase).items() if key not in ("block", "kind")}
        run.log.log("validate", step, {key: value for key, value in values.items() if value is not None})
    return truth


def _measure(run: Run, activations: bool, settings: KeyedSettings, artifact: Artifact) -> Files:
    from hawq.data import fixed_batches

    inputs, wanted = run.inputs, settings.validate
    indices = validation_indices(run, wanted.num_samples, settings.seed)
    truth = loss_increases(
        inputs.network,
        inputs.blocks,
        settings.quantizer,
        wanted.bit_widths,
        fixed_batches(inputs.test_images(), indices, wanted.batch_size, inputs.device),
        partial(nn.functional.cross_entropy, reduction="none"),
        inputs.calibration(run.settings.analysis.num_samples, CALIBRATION_BATCH, settings.seed),
        artifact.partial,
        wanted.save_every_seconds,
        run.progress,
        activations=activations,
        carry_batch_norm=True,
    )
    return {"increases.json": dump_record(INCREASES_SCHEMA, truth)}


def _compared(run: Run, float_network: FloatNetwork, analysis: Sensitivity) -> list[Compared]:
    """The score of each solver, the measured ones, then the errors. Each solver runs to its own end."""
    settings = run.settings
    whole = dataclasses.replace(settings.analysis, activations=False, stop_when_settled=False)
    found, seconds = {}, {}
    for name, solver in settings.compared.items():
        if settings.analysis.loss == "distillation" and solver.reads in ("gradients", "sketches"):
            print(f"note: solver {name} is left out, for the distillation loss has no gradient at the float network")
            continue
        own = run.with_settings(analysis=whole, solver=solver)
        found[name] = measured_curvature(own, float_network, f"analysis/{name}").estimates
        seconds[name] = run.records[-1].seconds
    unit = gradient_seconds(main for estimates in found.values() for main in map(main_estimate, estimates.values()))
    compared = [
        dataclasses.replace(
            compared_curvature(name, analysis.rows, estimates),
            seconds=seconds[name],
            gradient_equivalents=unit and seconds[name] / unit,
        )
        for name, estimates in found.items()
    ]
    held = {table.score: table for table in analysis.scores}
    measured_ones = [name for name in BEYOND_CURVATURE if name in settings.validate.scores or name in held]
    if settings.analysis.loss == "distillation" and "output_shift" in measured_ones:
        print("note: score output_shift is left out, for the distillation loss has no gradient at the float network")
        measured_ones.remove("output_shift")
    tables = [held.get(name) or measured_score(run, float_network, name) for name in measured_ones]
    everything = analysis.with_scores(tables)
    compared += _joint(compared, everything)
    compared += [
        Compared(
            table.score, everything, table.score, f"bits.score={table.score}", table.seconds, table.gradient_equivalents
        )
        for table in tables
    ]
    with measured() as cost:
        for block in run.inputs.blocks:
            weight_errors(block_weights(float_network.network, block), settings.quantizer, settings.validate.bit_widths)
    each = {"seconds": cost.seconds, "gradient_equivalents": unit and cost.seconds / unit}
    return compared + [
        Compared(name, everything, name, f"bits.score={name}", **each) for name in _ERRORS if name in held
    ]


def _joint(curvatures: Sequence[Compared], everything: Sensitivity) -> list[Compared]:
    """The geometric mean of kl and the trace, where both were found."""
    trace = next((one for one in curvatures if one.score == "trace"), None)
    if trace is None or all(table.score != "kl" for table in everything.scores):
        return []
    own = dataclasses.replace(
        trace.sensitivity.table("trace"), seconds=trace.seconds, gradient_equivalents=trace.gradient_equivalents
    )
    both = everything.with_scores([own])
    table, typed = both.table(KL_AND_TRACE), f"solver={trace.name} bits.score={KL_AND_TRACE}"
    return [Compared(KL_AND_TRACE, both, KL_AND_TRACE, typed, table.seconds, table.gradient_equivalents)]


_ERRORS = ("relative_error", PLAIN_ERROR)


def _activation_scores(run: Run, analysis: Sensitivity, compared: list[Compared]) -> list[Score]:
    """What the scores say of activations, those that say anything."""
    bit_widths = run.settings.validate.bit_widths
    omega, plain = activation_scores(analysis.rows, bit_widths)
    further = [
        one.of_blocks(ACTIVATIONS, bit_widths)
        for one in compared
        if one.score in BEYOND_CURVATURE and one.sensitivity.table(one.score).activations
    ]
    return [omega, *further, plain]
