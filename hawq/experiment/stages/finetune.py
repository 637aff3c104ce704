"""Fine-tuning: the plan's network, and before it the uniform baseline that it is compared with."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hawq.allocation import UniformBits, direct_baseline
from hawq.distributed import broadcast, broadcast_parameters
from hawq.experiment.artifacts import Artifact
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork, kept_file
from hawq.files import write_whole
from hawq.finetuning import FineTuning, Order, Row, make_phases
from hawq.finetuning import finetune as finetune_blocks
from hawq.quantization import Quantizer, attach
from hawq.records import PLAN_SCHEMA, BitPlan, Sensitivity, dump_record, to_dict

if TYPE_CHECKING:
    from hawq.experiment.stages.reconstruction import Reconstructed

MAIN = "hawq"


@dataclass(frozen=True)
class Tuned:
    """A quantised, fine-tuned network, its history, and its artifact."""

    network: nn.Module
    plan: BitPlan
    history: list[Row]
    artifact: Artifact


def finetune(
    run: Run,
    float_network: FloatNetwork,
    analysis: Sensitivity,
    allocation: BitPlan,
    tuning: dict[str, Reconstructed],
) -> dict[str, Tuned]:
    """Name → network: "hawq" follows the plan, "direct" is uniform, trained for the same number of steps.

    Blocks of a uniform network have no order: it is trained jointly, or progressively as the plan's. Networks that were
    reconstructed start as they are then, with all blocks quantised.
    """
    tuned, settings = {}, run.settings.finetune
    _introduce_teacher(run, float_network)
    unordered = settings if settings.order == "progressive" else replace(settings, order="joint")
    for name, plan in network_plans(run, analysis, allocation).items():
        own = settings if name == MAIN else unordered
        start, stage = tuning.get(name), label("finetune", name)
        tuned[name] = _tune(run.with_settings(finetune=own), float_network, analysis, plan, start, stage)
        _copy(tuned[name], name, network_folder(run.folder, name))
    return tuned


def label(stage: str, name: str) -> str:
    """What records and metrics call a stage of one network; that of the plan itself needs no name."""
    return stage if name == MAIN else f"{stage}/{name}"


def network_folder(folder: Path, name: str) -> Path:
    """Where a run keeps the results of one network; those of the plan itself stand in the run folder."""
    return folder if name == MAIN else folder / name


def network_plans(run: Run, analysis: Sensitivity, plan: BitPlan) -> dict[str, BitPlan]:
    """Name → plan of every network that a run quantises."""
    if run.settings.options.baseline == "none" or isinstance(run.settings.bits, UniformBits):
        return {MAIN: plan}
    return {"direct": direct_baseline(analysis, plan), MAIN: plan}


def taught_by(run: Run) -> dict[str, Any]:
    """For the key of what `shared_tuning` makes: the networks it learns from, where they are not the float one."""
    return {} if run.inputs.teacher is None else {"teachers": run.inputs.teacher.facts}


def _introduce_teacher(run: Run, float_network: FloatNetwork) -> None:
    """Prints the accuracy of what teaches in the float network's place, and a note where that is the lower one."""
    teacher = run.inputs.teacher
    if teacher is None:
        return

    def make(settings: KeyedSettings, artifact: Artifact) -> Files:
        accuracy = run.inputs.test_accuracy(teacher.network, None, run.progress, "accuracy of the teachers")
        return {"accuracy.json": json.dumps(accuracy).encode()}

    weights = float_network.weights_hash
    artifact = cached(run, "finetune", make, reads=(), network=weights, facts=taught_by(run), label="finetune/teachers")
    accuracy = artifact.read_json("accuracy.json")
    print(f"accuracy of the teachers: {accuracy:.2f} %")
    if accuracy < float_network.accuracy:
        print("note: that is less than the float network's, which teaches where teachers are left out")


def _tune(
    run: Run,
    float_network: FloatNetwork,
    analysis: Sensitivity,
    plan: BitPlan,
    start: Reconstructed | None,
    stage: str,
) -> Tuned:
    """One quantised network, fine-tuned by the run's settings."""
    settings, seed = run.settings.finetune, run.settings.options.seed
    steps = settings.num_steps(run.inputs.training_data(settings.batch_size, seed).steps_per_epoch)
    order = Order("joint") if start else settings.block_order()
    phases = make_phases(analysis, plan, order, steps, settings.lr, seed)
    facts: dict[str, Any] = {"bits": to_dict(plan.precisions), "phases": [to_dict(phase) for phase in phases]}
    facts |= taught_by(run)
    if start:
        facts["reconstruction"] = start.artifact.key
    if not steps:
        facts["batch_norm"] = "as calibrated"  # until 2026-11 its statistics were re-estimated even then
    state = start.state if start else None
    make, reads = partial(_train, run, analysis, plan, state, stage), ("finetune", "quantizer", "seed")
    weights = float_network.weights_hash
    artifact = cached(run, "finetune", make, reads=reads, network=weights, facts=facts, label=stage)
    network = attach(float_network.network, run.inputs.blocks, plan, run.settings.quantizer)
    path = kept_file(artifact, settings, "network.pt", "best.pt")
    network.load_state_dict(torch.load(path, map_location=run.inputs.device, weights_only=True))
    history = artifact.read_json("history.json")
    run.log.replay(stage, history)
    return Tuned(network.eval(), plan, history, artifact)


def _train(
    run: Run,
    analysis: Sensitivity,
    plan: BitPlan,
    start: dict[str, Any] | None,
    stage: str,
    settings: KeyedSettings,
    artifact: Artifact,
) -> Files:
    best: dict[str, Any] = {}
    own = {"settings": settings.finetune, "quantizer": settings.quantizer, "seed": settings.seed, "start": start}
    network, history = broadcast(partial(shared_tuning, sensitivity=analysis, plan=plan, **own))(
        run.inputs,
        evaluate=lambda candidate: run.inputs.test_accuracy(
            candidate, settings.finetune.eval_samples, run.progress, "accuracy during fine-tuning"
        ),
        checkpoint=artifact.partial,
        on_row=partial(run.log.row, stage),
        on_best=best.update,
        progress=run.progress,
        title=f"fine-tuning ({plan.method})",
    )
    files = {"network.pt": to_bytes(network.state_dict()), "history.json": json.dumps(history).encode()}
    return files | ({"best.pt": to_bytes(best)} if best else {})


def shared_tuning(
    inputs: Inputs,
    sensitivity: Sensitivity,
    plan: BitPlan,
    settings: FineTuning,
    quantizer: Quantizer,
    seed: int,
    start: dict[str, Any] | None = None,
    **callbacks: Any,
) -> tuple[nn.Module, list[Row]]:
    """Fine-tunes the first process' network, from the quantised state `start` on if there is one.

    Every process calls this; callbacks are given to the first one alone.
    """
    broadcast_parameters(inputs.network)
    network = None
    if start is not None:
        network = attach(inputs.network, inputs.blocks, plan, quantizer)
        network.load_state_dict(start)
    return finetune_blocks(
        inputs.network,
        sensitivity,
        plan,
        inputs.training_data(settings.batch_size, seed),
        inputs.calibration(settings.calibration_batches * settings.batch_size, settings.batch_size, seed),
        settings,
        quantizer=quantizer,
        seed=seed,
        start=network,
        teacher=inputs.teacher.network if inputs.teacher else None,
        **callbacks,
    )


def _copy(tuned: Tuned, name: str, target: Path) -> None:
    """The run folder gets its own copy of every result."""
    if name != MAIN:
        write_whole(target / "plan.json", dump_record(PLAN_SCHEMA, tuned.plan))
    for path in tuned.artifact.files():
        write_whole(target / "finetune" / path.name, path.read_bytes())


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state dict as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
