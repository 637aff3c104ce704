"""The stages: each reads artifacts, does its work at most once for the same inputs, and writes one artifact."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from hawq.allocation import IntegerProgram, is_proven
from hawq.curvature import Batch, CurvatureCheckpoint, Solver
from hawq.data import Images, Splits, TrainBatches, fixed_batches, sample_indices
from hawq.distributed import broadcast, broadcast_parameters, rank, shard, world_size
from hawq.errors import UserError
from hawq.evaluation import accuracy_on
from hawq.experiment.artifacts import Artifact, Store, dump_record, hash_tensors, parse_record
from hawq.experiment.config import STAGES, VALIDATE, RunOptions, Settings
from hawq.experiment.progress import Console
from hawq.experiment.tracking import MetricsLog
from hawq.export import PACKED_SCHEMA, export_onnx, load, save
from hawq.finetuning import FineTuning, Row, Training, finetune, fit, make_phases
from hawq.measurement import measured
from hawq.models import FloatModel, read_checkpoint, write_checkpoint
from hawq.quantization import attach, weight_errors
from hawq.records import (
    BitPlan,
    Block,
    Estimate,
    FloatPart,
    Normalization,
    Phase,
    Preprocessing,
    Sensitivity,
    StageRecord,
    to_dict,
)
from hawq.sensitivity import Analysis, Curvature, block_weights, combine, measure_curvature
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
from hawq.weights import load_strictly

FORMAT = 3  # raised when a stage computes something else from the same settings: old artifacts are then left alone
SENSITIVITY_SCHEMA = "hawq.sensitivity/2"
CURVATURE_SCHEMA = "hawq.curvature/2"
INCREASES_SCHEMA = "hawq.loss_increases/1"
_EVALUATION_BATCH = 100

Files = dict[str, bytes]


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs are all there and fit each other; nothing has been computed yet."""

    settings: Settings
    device: torch.device
    splits: Splits
    data_facts: dict[str, Any]
    source: FloatModel
    normalization: Normalization
    blocks: tuple[Block, ...]
    float_parts: tuple[FloatPart, ...]
    overhead_bytes: int
    store: Store

    def with_settings(self, **changed: Any) -> Prepared:
        """The same inputs under other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changed))

    def prepare_image(self, *, augmented: bool = False) -> Callable[[Any], Tensor]:
        """What makes a network's input of an image of the data set."""
        return self.settings.dataset.prepare(self.source.preprocessing, self.normalization, augmented=augmented)

    def train_images(self, *, augmented: bool) -> Images:
        augment = self.prepare_image(augmented=True) if augmented else None
        return Images(self.splits.train_images, self.splits.train_labels, self.prepare_image(), augment)

    def test_images(self) -> Images:
        return Images(self.splits.test_images, self.splits.test_labels, self.prepare_image())

    def training_data(self, batch_size: int) -> TrainBatches:
        options = self.settings.options
        return TrainBatches(
            self.train_images(augmented=True), batch_size, options.seed, self.device, workers=options.workers
        )

    def example(self) -> Tensor:
        """The first test image, (1, 3, H, W)."""
        return fixed_batches(self.test_images(), [0], 1, self.device)[0][0]

    def test_accuracy(self, network: nn.Module, num_images: int | None = None, title: str = "") -> float:
        """Accuracy in percent on the first `num_images` test images, or on all."""
        count = min(num_images or len(self.splits.test_images), len(self.splits.test_images))
        images = Subset(self.test_images(), range(count))
        return accuracy_on(network, images, self.device, self.settings.options.workers, Console(), title)


@dataclass(frozen=True)
class FloatNetwork:
    """The trained float network: its weights' hash is what every later key builds on."""

    network: nn.Module
    weights_hash: str
    accuracy: float


@dataclass(frozen=True)
class Tuned:
    """A quantised, fine-tuned network, its history, and its artifact."""

    network: nn.Module
    plan: BitPlan
    history: list[Row]
    entry: Artifact


@dataclass(frozen=True)
class Packed:
    """A packed file, and the accuracy measured from it."""

    entry: Artifact
    accuracy: float
    size_bytes: int


def float_network(prepared: Prepared, log: MetricsLog, records: list[StageRecord]) -> FloatNetwork:
    """The network as loaded, or trained first when no checkpoint was given; and its test accuracy."""
    network, settings = prepared.source.network, prepared.settings
    if prepared.source.normalization is None:
        entry = _cached(prepared, "float", _float_facts(prepared), lambda e: _train_float(prepared, e, log), records)
        path = _kept(entry, settings.training, "float.safetensors", "best.safetensors")
        load_strictly(network, read_checkpoint(path, None).state, str(path))
        _replay(log, "float", entry.read_json("history.json"))
    network.eval()
    weights_hash = hash_tensors(network.state_dict())
    facts = {"format": FORMAT, "model": settings.model.name, "weights": weights_hash, **prepared.data_facts}
    entry = _cached(prepared, "evaluation", facts, lambda _: _evaluate(prepared, network), records)
    return FloatNetwork(network, weights_hash, float(entry.read_json("accuracy.json")["accuracy"]))


def analysis(prepared: Prepared, source: FloatNetwork, log: MetricsLog, records: list[StageRecord]) -> Sensitivity:
    """λ_i of every block (the expensive half, kept by itself), joined with the weight errors of this quantiser."""
    settings = prepared.settings
    curvature = _curvature(prepared, source, log, records, "analysis")
    inputs = _activation_inputs(prepared)
    sensitivity = combine(source.network, prepared.blocks, curvature, settings.quantizer, inputs)
    return dataclasses.replace(sensitivity, overhead_bytes=prepared.overhead_bytes)


def _curvature(
    prepared: Prepared, source: FloatNetwork, log: MetricsLog, records: list[StageRecord], label: str
) -> Curvature:
    """What the run's solver finds of every block; `label` tells this analysis from others of the same run."""
    settings = prepared.settings
    facts = {
        "format": FORMAT,
        "model": settings.model.name,
        "weights": source.weights_hash,
        "blocks": [to_dict(block) for block in prepared.blocks],
        "analysis": component_facts(settings.analysis, without=("batch_size", "save_every_seconds")),
        "solver": component_facts(settings.solver, without=("memory_limit_gib",)),
        "seed": settings.options.seed,
        **prepared.data_facts,
    }
    if settings.analysis.stop_when_settled:  # the result then depends on what it was wanted for
        facts |= {"bits": component_facts(settings.bits), "quantizer": component_facts(settings.quantizer)}
    entry = _cached(prepared, "analysis", facts, lambda e: _analyse(prepared, e, log, label), records, label=label)
    curvature = parse_record(entry.path / "curvature.json", CURVATURE_SCHEMA, Curvature)
    for index, block in enumerate(prepared.blocks):
        _log_estimate(log, label, index, _main_estimate(curvature.estimates[block.name]))
    return curvature


def validation(
    prepared: Prepared, source: FloatNetwork, sensitivity: Sensitivity, log: MetricsLog, records: list[StageRecord]
) -> Validated:
    """The true rise of the loss when each block alone is quantised, and how well the score of each solver foretells it.

    The rises are kept by themselves, and so is the analysis of each solver: a run with `solver=...` shares it.
    """
    settings, wanted = prepared.settings, prepared.settings.validation
    activations = settings.analysis.activations
    facts = {
        "format": FORMAT,
        "model": settings.model.name,
        "weights": source.weights_hash,
        "blocks": [to_dict(block) for block in prepared.blocks],
        "quantizer": component_facts(settings.quantizer),
        "bit_widths": list(wanted.bit_widths),
        "num_samples": wanted.num_samples,
        "calibration": [settings.analysis.num_samples, settings.analysis.batch_size] if activations else [],
        "seed": settings.options.seed,
        **prepared.data_facts,
    }
    entry = _cached(prepared, VALIDATE, facts, lambda e: _measure_rises(prepared, source, e), records)
    truth = parse_record(entry.path / "increases.json", INCREASES_SCHEMA, LossIncreases)
    for step, rise in enumerate(truth.increases):
        log.log(VALIDATE, step, {key: value for key, value in to_dict(rise).items() if key not in ("block", "kind")})
    scores = _weight_scores(prepared, source, sensitivity, log, records)
    if activations:
        scores += activation_scores(sensitivity.rows, wanted.bit_widths)
    correlations = correlate(truth.increases, scores, wanted.bit_widths, wanted.draws, settings.options.seed)
    return Validated(truth, tuple(scores), correlations)


def _measure_rises(prepared: Prepared, source: FloatNetwork, entry: Artifact) -> Files:
    settings, wanted = prepared.settings, prepared.settings.validation
    images = prepared.test_images()
    indices = sample_indices(len(images), wanted.num_samples, settings.options.seed)
    truth = loss_increases(
        source.network,
        prepared.blocks,
        settings.quantizer,
        wanted.bit_widths,
        fixed_batches(images, indices, wanted.batch_size, prepared.device),
        partial(nn.functional.cross_entropy, reduction="none"),
        _activation_inputs(prepared),
        entry.partial,
        wanted.save_every_seconds,
    )
    return {"increases.json": dump_record(INCREASES_SCHEMA, truth)}


def _weight_scores(
    prepared: Prepared, source: FloatNetwork, sensitivity: Sensitivity, log: MetricsLog, records: list[StageRecord]
) -> list[Score]:
    """The score of each solver, then the plain error. Each solver runs to its own end, on the weights alone."""
    settings, bit_widths = prepared.settings, prepared.settings.validation.bit_widths
    whole = dataclasses.replace(settings.analysis, activations=False, stop_when_settled=False)
    found, seconds = {}, {}
    for name, solver in settings.compared.items():
        own = prepared.with_settings(analysis=whole, solver=solver)
        found[name] = _curvature(own, source, log, records, f"analysis/{name}").estimates
        seconds[name] = records[-1].seconds
    with measured() as cost:
        errors = {
            block.name: weight_errors(block_weights(source.network, block), settings.quantizer, bit_widths)
            for block in prepared.blocks
        }
    unit = gradient_seconds(main for estimates in found.values() for main in map(_main_estimate, estimates.values()))
    scores = [curvature_score(name, sensitivity.rows, found[name], bit_widths) for name in found]
    costs = {**seconds, PLAIN_ERROR: cost.seconds}
    return [
        dataclasses.replace(score, seconds=costs[score.name], gradient_equivalents=unit and costs[score.name] / unit)
        for score in (*scores, Score(PLAIN_ERROR, WEIGHTS, None, errors))
    ]


def tuning(
    prepared: Prepared,
    source: FloatNetwork,
    sensitivity: Sensitivity,
    plan: BitPlan,
    settings: FineTuning,
    name: str,
    log: MetricsLog,
    records: list[StageRecord],
) -> Tuned:
    """The network quantised by `plan` and fine-tuned; `name` tells this one from others of the same run."""
    seed = prepared.settings.options.seed
    steps = settings.num_steps(prepared.training_data(settings.batch_size).steps_per_epoch)
    phases = make_phases(sensitivity, plan, settings.block_order(), steps, settings.lr, seed)
    facts = _tuning_facts(prepared, source, plan, phases, settings)
    stage = _label("finetune", name)

    def make(entry: Artifact) -> Files:
        best: dict[str, Any] = {}
        work = partial(shared_tuning, sensitivity=sensitivity, plan=plan, settings=settings)
        network, history = broadcast(work)(
            prepared,
            evaluate=lambda candidate: prepared.test_accuracy(candidate, settings.eval_samples),
            checkpoint=entry.partial,
            on_row=lambda row: _log_row(log, stage, row),
            on_best=best.update,
            title=f"fine-tuning ({plan.method})",
        )
        files = {"network.pt": _to_bytes(network.state_dict()), "history.json": json.dumps(history).encode()}
        return files | ({"best.pt": _to_bytes(best)} if best else {})

    entry = _cached(prepared, "finetune", facts, make, records, label=stage)
    network = attach(source.network, prepared.blocks, plan, prepared.settings.quantizer)
    path = _kept(entry, settings, "network.pt", "best.pt")
    network.load_state_dict(torch.load(path, map_location=prepared.device, weights_only=True))
    history = entry.read_json("history.json")
    _replay(log, stage, history)
    return Tuned(network.eval(), plan, history, entry)


def shared_tuning(
    prepared: Prepared, sensitivity: Sensitivity, plan: BitPlan, settings: FineTuning, **heard: Any
) -> tuple[nn.Module, list[Row]]:
    """Fine-tunes the first process' network; every process calls this, the first one evaluates, stores, hears of it."""
    broadcast_parameters(prepared.source.network)
    return finetune(
        prepared.source.network,
        sensitivity,
        plan,
        prepared.training_data(settings.batch_size),
        _calibration(prepared, settings),
        settings,
        quantizer=prepared.settings.quantizer,
        seed=prepared.settings.options.seed,
        **heard,
    )


def packing(prepared: Prepared, source: FloatNetwork, tuned: Tuned, name: str, records: list[StageRecord]) -> Packed:
    """The packed file (and ONNX on request), read back and measured on the whole test set."""
    settings = prepared.settings
    about = about_network(settings, prepared.normalization, prepared.source.preprocessing, prepared.example())
    facts = {
        "format": PACKED_SCHEMA,
        "finetune": tuned.entry.key,
        "keep": settings.finetune.keep,
        "export": component_facts(settings.export),
        "about": about,
    }

    def make(entry: Artifact) -> Files:
        path = save(tuned.network, entry.path / "model.safetensors", about)
        restored = load(path, source.network)
        _refuse_other_outputs(tuned.network, restored, prepared.example())
        measured_accuracy = prepared.test_accuracy(restored, title=f"accuracy of the packed file ({tuned.plan.method})")
        files = {
            "model.safetensors": path.read_bytes(),
            "accuracy.json": json.dumps({"accuracy": measured_accuracy}).encode(),
        }
        if settings.export.onnx:
            files["model.onnx"] = export_onnx(restored, entry.path / "model.onnx", prepared.example()).read_bytes()
        return files

    entry = _cached(prepared, "export", facts, make, records, label=_label("export", name))
    value = float(entry.read_json("accuracy.json")["accuracy"])
    return Packed(entry, value, (entry.path / "model.safetensors").stat().st_size)


def about_network(
    settings: Settings, normalization: Normalization, preprocessing: Preprocessing, example: Tensor
) -> dict[str, Any]:
    """What the packed file tells about its network: enough to measure it again; `example` is one input (1, 3, H, W)."""
    preprocessing = dataclasses.replace(preprocessing, size=example.shape[-1])  # images in memory keep their own size
    names = {"model": settings.model.name, "dataset": settings.dataset.name}
    return {**names, **to_dict(normalization), "preprocessing": to_dict(preprocessing)}


def _label(stage: str, name: str) -> str:
    """What a stage of one network is called in records and metrics; the network of the plan itself needs no name."""
    return stage if name == "hawq" else f"{stage}/{name}"


def component_facts(component: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """What a result depends on in a component: its class and its fields, less those that change no result."""
    fields = {field.name: getattr(component, field.name) for field in dataclasses.fields(component)}
    kept = {name: value for name, value in fields.items() if name not in without}
    return {"class": f"{type(component).__module__}.{type(component).__qualname__}", **json.loads(json.dumps(kept))}


def _kept(entry: Artifact, settings: Training, last: str, best: str) -> Path:
    """The file of the network that a run goes on with; a training that measured nothing has no best one."""
    path = entry.path / best
    return path if settings.keep == "best" and path.is_file() else entry.path / last


def _cached(
    prepared: Prepared,
    stage: str,
    facts: Mapping[str, Any],
    make: Callable[[Artifact], Files],
    records: list[StageRecord],
    label: str | None = None,
) -> Artifact:
    """The artifact for `facts`, made now unless it exists; a record of its provenance is added to `records`."""
    entry = prepared.store.entry(stage, facts)
    with entry.locked():
        manifest = entry.manifest()
        reused = manifest is not None
        if manifest is None:
            _refuse_gap(stage, prepared.settings.options)
            with measured() as cost:
                files = make(entry)
            made: dict[str, Any] = {
                "seconds": round(entry.partial.earlier_seconds + cost.seconds, 2),
                "peak_memory_mib": cost.peak_memory_mib,
                "depends_on": dict(facts),
            }
            entry.finish(files, made)
            manifest = made
    if reused:
        print(f"{label or stage}: found in the cache ({entry.key})")
    records.append(StageRecord(label or stage, entry.key, reused, manifest["seconds"], manifest["peak_memory_mib"]))
    return entry


def _refuse_gap(stage: str, options: RunOptions) -> None:
    """Before any work: every stage from the one to be made up to the last needed one must be selected."""
    if stage == VALIDATE:  # nothing is built on it
        return
    selected, last = options.stages, options.last_stage()
    first = STAGES.index(stage) if stage in STAGES else 0
    absent = [name for name in STAGES[first : last + 1] if name not in selected]
    if absent:
        wanted = [*STAGES[: last + 1], *(name for name in selected if name == VALIDATE)]
        raise UserError(
            f"stages={list(selected)} leaves out {', '.join(absent)}, whose result for these settings is not in the "
            f"cache: give stages={wanted}"
        )


def _float_facts(prepared: Prepared) -> dict[str, Any]:
    settings = prepared.settings
    return {
        "format": FORMAT,
        "model": settings.model.name,
        "num_classes": prepared.splits.num_classes,
        "training": component_facts(settings.training, without=("checkpoint_every", "keep")),
        "dataset": component_facts(settings.dataset, without=("path",)),
        "seed": settings.options.seed,
        **prepared.data_facts,
    }


def _tuning_facts(
    prepared: Prepared, source: FloatNetwork, plan: BitPlan, phases: Sequence[Phase], settings: FineTuning
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": prepared.settings.model.name,
        "weights": source.weights_hash,
        "blocks": [to_dict(block) for block in prepared.blocks],
        "bits": to_dict(plan.precisions),
        "phases": [to_dict(phase) for phase in phases],
        "quantizer": component_facts(prepared.settings.quantizer),
        "finetune": component_facts(settings, without=("checkpoint_every", "keep")),
        "dataset": component_facts(prepared.settings.dataset, without=("path",)),
        "seed": prepared.settings.options.seed,
        **prepared.data_facts,
    }


def _train_float(prepared: Prepared, entry: Artifact, log: MetricsLog) -> Files:
    network, settings = prepared.source.network, prepared.settings.training
    best: dict[str, Any] = {}
    history = broadcast(shared_training)(
        prepared,
        evaluate=lambda candidate: prepared.test_accuracy(candidate, settings.eval_samples),
        checkpoint=entry.partial,
        on_row=lambda row: _log_row(log, "float", row),
        on_best=best.update,
        title="training the float network",
    )
    files = {
        "float.safetensors": write_checkpoint(network, prepared.normalization),
        "history.json": json.dumps(history).encode(),
    }
    if best:
        network.load_state_dict(best)
        files["best.safetensors"] = write_checkpoint(network, prepared.normalization)
    return files


def shared_training(prepared: Prepared, **heard: Any) -> list[Row]:
    """Trains the float network; every process calls this, and the first one evaluates, stores and hears of it."""
    settings = prepared.settings.training
    data = prepared.training_data(settings.batch_size)
    phases = [Phase((), (), settings.num_steps(data.steps_per_epoch), settings.lr, 0.0)]
    seed = prepared.settings.options.seed
    return fit(prepared.source.network, phases, data, settings, seed=seed, **heard)


def _evaluate(prepared: Prepared, network: nn.Module) -> Files:
    value = prepared.test_accuracy(network, title="accuracy of the float network")
    return {"accuracy.json": json.dumps({"accuracy": value}).encode()}


def _analyse(prepared: Prepared, entry: Artifact, log: MetricsLog, label: str) -> Files:
    index_of = {block.name: index for index, block in enumerate(prepared.blocks)}
    work = partial(shared_curvature, solver=prepared.settings.solver, wanted=prepared.settings.analysis)
    curvature = broadcast(work)(
        prepared,
        checkpoint=entry.partial,
        settled=partial(_is_settled, prepared),
        on_estimate=lambda name, estimate: _log_estimate(log, label, index_of[name], estimate),
        warn=lambda text: print(f"note: {text}"),
    )
    return {"curvature.json": dump_record(CURVATURE_SCHEMA, curvature)}


def shared_curvature(
    prepared: Prepared,
    solver: Solver,
    wanted: Analysis,
    checkpoint: CurvatureCheckpoint | None = None,
    on_estimate: Callable[[str, Estimate], None] = lambda name, estimate: None,
    warn: Callable[[str], object] = lambda text: None,
    settled: Callable[[Curvature], bool] = lambda curvature: False,
) -> Curvature:
    """The curvature of the first process' network; every process calls this and reads its own share of the samples."""
    prepared = prepared.with_settings(solver=solver, analysis=wanted)
    settings, network = prepared.settings, prepared.source.network
    broadcast_parameters(network)
    return measure_curvature(
        network.eval(),
        prepared.blocks,
        _analysis_batches(prepared, part=rank(), parts=world_size()),
        nn.functional.cross_entropy,
        settings.solver,
        settings.options.seed,
        checkpoint,
        settings.analysis.save_every_seconds,
        on_estimate,
        activations=settings.analysis.activations,
        warn=warn,
        settled=settled,
    )


def _is_settled(prepared: Prepared, curvature: Curvature) -> bool:
    """Whether the plan that was asked for is proven with what is known by now."""
    settings = prepared.settings
    bits = settings.bits
    if not settings.analysis.stop_when_settled or not isinstance(bits, IntegerProgram) or bits.activations == "mixed":
        return False
    if any(not isfinite(main.value + main.error) for main in map(_main_estimate, curvature.estimates.values())):
        return False
    sensitivity = combine(prepared.source.network, prepared.blocks, curvature, settings.quantizer, [])
    sensitivity = dataclasses.replace(sensitivity, overhead_bytes=prepared.overhead_bytes)
    return is_proven(sensitivity, bits, bits.allocate(sensitivity))


def _main_estimate(estimates: Mapping[str, Estimate]) -> Estimate:
    """What a solver is for: it stands first."""
    return next(iter(estimates.values()))


def _analysis_batches(prepared: Prepared, part: int = 0, parts: int = 1) -> list[Batch]:
    """One of `parts` equal shares of the samples that the Hessian sees, not augmented."""
    settings = prepared.settings
    images = prepared.train_images(augmented=False)
    indices = sample_indices(len(images), settings.analysis.num_samples, settings.options.seed)
    own = indices[shard(len(indices), part, parts)]
    return fixed_batches(images, own, settings.analysis.batch_size, prepared.device)


def _activation_inputs(prepared: Prepared) -> list[Tensor]:
    """What ranges and errors of activations come from in analysis and validation; empty where they are not wanted."""
    wanted = prepared.settings.analysis.activations
    return [inputs for inputs, _ in _analysis_batches(prepared)] if wanted else []


def _calibration(prepared: Prepared, settings: FineTuning) -> list[Tensor]:
    """Training images, not augmented, that activation ranges are chosen from."""
    images = prepared.train_images(augmented=False)
    wanted = settings.calibration_batches * settings.batch_size
    indices = sample_indices(len(images), wanted, prepared.settings.options.seed)
    return [inputs for inputs, _ in fixed_batches(images, indices, settings.batch_size, prepared.device)]


@torch.no_grad()
def _refuse_other_outputs(tuned: nn.Module, restored: nn.Module, example: Tensor) -> None:
    difference = float((tuned(example) - restored(example)).abs().max())
    assert difference <= 1e-4, f"the packed file computes something else (largest difference {difference})"


def _log_row(log: MetricsLog, stage: str, row: Row) -> None:
    log.log(stage, row["step"], {key: value for key, value in row.items() if key != "step"})


def _replay(log: MetricsLog, stage: str, history: Sequence[Row]) -> None:
    """Rows of a cached stage, for a run that has not seen them."""
    for row in history:
        _log_row(log, stage, row)


def _log_estimate(log: MetricsLog, label: str, index: int, estimate: Estimate) -> None:
    values = {"curvature": estimate.value, "error": estimate.error, "products": estimate.products}
    log.log(label, index, values)


def _to_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
