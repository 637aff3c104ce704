"""A whole run: check everything, walk through the stages, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml

from hawq.allocation import (
    IntegerProgram,
    Monotone,
    UniformBits,
    Weighted,
    confidence,
    direct_baseline,
    frontier,
)
from hawq.blocks import find_blocks
from hawq.costs import checkpoint_bytes, paper_size_mib, published_bytes
from hawq.distributed import broadcast
from hawq.experiment.artifacts import PLAN_SCHEMA, Store, dump_record, fingerprint, parse_record, write_json
from hawq.experiment.config import REPOSITORY, STAGES, VALIDATE, Settings
from hawq.experiment.stages import (
    SENSITIVITY_SCHEMA,
    FloatNetwork,
    Packed,
    Prepared,
    Tuned,
    about_network,
    analysis,
    float_network,
    packing,
    tuning,
    validation,
)
from hawq.experiment.tracking import MetricsLog
from hawq.export import packed_overhead
from hawq.files import write_whole
from hawq.measurement import measured
from hawq.records import FLOAT_BITS, BitPlan, ResultRow, RunReport, Sensitivity, StageRecord, to_dict
from hawq.report import (
    RESULT_COLUMNS,
    finetuning_figure,
    frontier_figure,
    git_commit,
    hardware,
    limits_table,
    markdown,
    result_cells,
    result_row,
    results_table,
    sensitivity_figure,
    sensitivity_rows,
    validation_figure,
    validation_rows,
    validation_table,
    versions,
)
from hawq.unquantized import unquantized

FRONTIER_SCHEMA = "hawq.frontier/1"
VALIDATION_SCHEMA = "hawq.validation/1"


@dataclass(frozen=True)
class PreparedAllocation:
    """A run that only allocates, from a sensitivity file; there is neither model nor data."""

    settings: Settings
    sensitivity: Sensitivity


def prepare(settings: Settings) -> Prepared | PreparedAllocation:
    """Opens what the run starts from: a sensitivity file where one is given, else data and network.

    Raises ValueError or FileNotFoundError, with one sentence, for whatever does not fit.
    """
    if settings.allocation.sensitivity is None:
        return prepare_network(settings)
    path = Path(settings.allocation.sensitivity)
    if tuple(settings.options.stages) != ("allocation",):
        raise ValueError(
            f"allocation.sensitivity={path} stands for model and data, so stages={list(settings.options.stages)} "
            "cannot be done: give stages=[allocation]"
        )
    if not path.is_file():
        raise FileNotFoundError(f"allocation.sensitivity={path} does not exist: give the sensitivity.json of a run")
    sensitivity = parse_record(path, SENSITIVITY_SCHEMA, Sensitivity)
    if not sensitivity.rows:
        raise ValueError(f"allocation.sensitivity={path} names no block: give one row a block (docs/formats.md)")
    settings.bits.check(sensitivity.blocks, sensitivity.overhead_bytes)
    return PreparedAllocation(settings, sensitivity)


def prepare_network(settings: Settings) -> Prepared:
    """Opens the data, builds the network, finds its blocks, and checks that the bits fit them.

    Raises ValueError or FileNotFoundError, with one sentence, for whatever does not fit.
    """
    options = settings.options
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    splits = settings.dataset.open()
    torch.manual_seed(options.seed)
    source = settings.model.build(splits.num_classes)
    if not len(splits.train_images) and (options.stages or source.normalization is None):
        raise ValueError(
            f"{settings.dataset.name} has no training images here, which {', '.join(options.stages) or 'training'} "
            "needs: add them, or evaluate a checkpoint alone with stages=[]"
        )
    device = options.torch_device()
    source.network.to(device)
    if settings.model.channels_last:
        source.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalization = source.normalization or settings.dataset.normalization
    example = settings.dataset.prepare(source.preprocessing, normalization)(splits.test_images[0])[None].to(device)
    try:
        blocks = find_blocks(source.network, example, granularity=settings.model.blocks)
        float_parts = unquantized(source.network, blocks, example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model {settings.model.name} cannot take images of {tuple(example.shape[2:])} ({reason}): "
            "give a larger model.small_input_size or another dataset"
        ) from error
    about = about_network(settings, normalization, source.preprocessing, example)
    overhead_bytes = packed_overhead(source.network, blocks, settings.quantizer, about)
    settings.bits.check(blocks, overhead_bytes)
    data_facts = {
        "data": splits.identity(),
        "normalization": to_dict(normalization),
        "preprocessing": to_dict(source.preprocessing),
    }
    store = Store(Path(options.outputs) / "cache")
    return Prepared(
        settings, device, splits, data_facts, source, normalization, blocks, float_parts, overhead_bytes, store
    )


@dataclass
class Findings:
    """What a run has found so far."""

    source: FloatNetwork | None = None
    sensitivity: Sensitivity | None = None
    plan: BitPlan | None = None
    tuned: dict[str, Tuned] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)
    records: list[StageRecord] = field(default_factory=list)


def assist(prepared: Prepared | PreparedAllocation) -> None:
    """What every process but the first does: its share of analysis and training, when the first one comes to them."""
    while work := _call():
        assert isinstance(prepared, Prepared), "a sensitivity file needs neither"
        work(prepared)


def _call() -> Callable[[Prepared], object] | None:
    """The work that the first process comes to, None at its end. Leaves with it when it has ended with an error."""
    try:
        work: Callable[[Prepared], object] | None = broadcast(None)
        return work
    except RuntimeError as error:
        raise SystemExit(1) from error


def run(prepared: Prepared | PreparedAllocation) -> None:
    """Walks through the stages that were asked for, and says where everything lies.

    Raises UserError when a stage was left out whose result is not in the cache.
    """
    settings = prepared.settings
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", yaml.safe_dump(settings.resolved, sort_keys=False).encode())
    found = Findings()
    sink = settings.tracking.open(folder, folder.name, settings.resolved)
    with MetricsLog(folder, sink) as log:
        if isinstance(prepared, PreparedAllocation):
            found.sensitivity = prepared.sensitivity
            _allocation(settings, found, log)
        else:
            with measured() as cost:
                _walk(prepared, found, log)
            if "report" in settings.options.stages:
                _report(prepared, found, log, cost.seconds)
    broadcast(None)  # the other processes may go
    print(f"\nEverything of this run: {folder}")


def _walk(prepared: Prepared, found: Findings, log: MetricsLog) -> None:
    """The stages in order, each as far as it is wanted."""
    settings = prepared.settings
    folder, selected = settings.folder, settings.options.stages
    last = settings.options.last_stage()
    found.source = float_network(prepared, log, found.records)
    print(f"float accuracy: {found.source.accuracy:.2f} %")
    if prepared.float_parts:
        print(f"stays float: {', '.join(map(str, prepared.float_parts))}")
    if last < STAGES.index("analysis"):
        return
    found.sensitivity = analysis(prepared, found.source, log, found.records)
    if VALIDATE in selected:
        _validate(prepared, found, log)
    if last == STAGES.index("analysis"):
        write_whole(folder / "sensitivity.json", dump_record(SENSITIVITY_SCHEMA, found.sensitivity))
        print("\n" + _sensitivity_table(found.sensitivity, None))
        return
    chosen = _allocation(settings, found, log)
    if last == STAGES.index("allocation"):
        return
    for name, plan in _plans(settings, found.sensitivity, chosen).items():
        tuned = _tune(prepared, found, name, plan, log)
        if last > STAGES.index("finetune"):
            found.packed[name] = packing(prepared, found.source, tuned, name, found.records)
    _copy_results(folder, found)


def _validate(prepared: Prepared, found: Findings, log: MetricsLog) -> None:
    """What the scores foretold beside what came true: file, table, figure."""
    assert found.source is not None and found.sensitivity is not None
    folder = prepared.settings.folder
    result = validation(prepared, found.source, found.sensitivity, log, found.records)
    write_whole(folder / "validation.json", dump_record(VALIDATION_SCHEMA, result))
    log.table("validation", *validation_rows(result))
    log.image("figures/validation", validation_figure(result, folder / "figures" / "validation.png"))
    log.artifact(f"{folder.name}-validation", "validation", folder / "validation.json")
    print("\n" + validation_table(result) + "\n")


def _allocation(settings: Settings, found: Findings, log: MetricsLog) -> BitPlan:
    """The plan, how sure it is and the frontier around it: files, tables, figure.

    Allocation takes little time, so it is made anew each time; its key is the hash of the plan.
    """
    assert found.sensitivity is not None
    sensitivity, folder, wanted = found.sensitivity, settings.folder, settings.allocation
    with measured() as cost:
        plan = settings.bits.allocate(sensitivity)
        if isinstance(settings.bits, Weighted) and wanted.confidence_draws:
            draws, seed = wanted.confidence_draws, settings.options.seed
            plan = replace(plan, confidence=confidence(sensitivity, settings.bits, plan, draws, seed))
    found.plan = plan
    key = fingerprint(to_dict(plan))
    found.records.append(StageRecord("allocation", key, False, cost.seconds, cost.peak_memory_mib))
    write_whole(folder / "sensitivity.json", dump_record(SENSITIVITY_SCHEMA, sensitivity))
    write_whole(folder / "plan.json", dump_record(PLAN_SCHEMA, plan))
    columns, rows = sensitivity_rows(sensitivity, plan)
    log.table("sensitivity", columns, rows)
    log.table("plan", ("block", "weight_bits", "activation_bits"), _plan_rows(plan))
    print("\n" + _sensitivity_table(sensitivity, plan) + "\n\n" + limits_table(plan) + "\n")
    if isinstance(settings.bits, (IntegerProgram, Monotone)) and wanted.frontier_points:
        front = frontier(sensitivity, settings.bits, wanted.frontier_points)
        write_whole(folder / "frontier.json", dump_record(FRONTIER_SCHEMA, front))
        log.image("figures/frontier", frontier_figure(front, plan, folder / "figures" / "frontier.png"))
    return plan


def _plans(settings: Settings, sensitivity: Sensitivity, plan: BitPlan) -> dict[str, BitPlan]:
    """What is fine-tuned: the plan, and before it the uniform baseline it is compared with."""
    if settings.options.baseline == "none" or isinstance(settings.bits, UniformBits):
        return {"hawq": plan}
    return {"direct": direct_baseline(sensitivity, plan), "hawq": plan}


def _tune(prepared: Prepared, found: Findings, name: str, plan: BitPlan, log: MetricsLog) -> Tuned:
    """Fine-tunes one plan; the baseline is trained jointly, for the same number of steps."""
    assert found.source is not None and found.sensitivity is not None
    settings = prepared.settings.finetune
    if name == "direct":
        settings = replace(settings, order="joint")
    tuned = tuning(prepared, found.source, found.sensitivity, plan, settings, name, log, found.records)
    found.tuned[name] = tuned
    return tuned


def _copy_results(folder: Path, found: Findings) -> None:
    """The run folder gets its own copy of every result; the direct baseline's stand in a folder of their own."""
    for name, tuned in found.tuned.items():
        target = folder if name == "hawq" else folder / name
        if name != "hawq":
            write_whole(target / "plan.json", dump_record(PLAN_SCHEMA, tuned.plan))
        for path in tuned.entry.files():
            write_whole(target / "finetune" / path.name, path.read_bytes())
        if name in found.packed:
            for path in found.packed[name].entry.files():
                if path.suffix in (".safetensors", ".onnx"):
                    write_whole(target / path.name, path.read_bytes())


def _report(prepared: Prepared, found: Findings, log: MetricsLog, seconds: float) -> None:
    """report.json, the figures and the results table."""
    assert found.source and found.sensitivity and found.plan and found.packed, "the report comes after all stages"
    settings = prepared.settings
    folder, plan = settings.folder, found.plan
    rows = _result_rows(found)
    figures = {"sensitivity": sensitivity_figure(found.sensitivity, plan, folder / "figures" / "sensitivity.png")}
    histories = {tuned.plan.method: tuned.history for tuned in reversed(found.tuned.values())}
    if any(histories.values()):  # finetune.epochs=0 leaves nothing to draw
        path = folder / "figures" / "finetuning.png"
        figures["finetuning"] = finetuning_figure(histories, found.source.accuracy, path)
    report = RunReport(
        rows=tuple(rows),
        stages=tuple(found.records),
        plan=plan,
        config=settings.resolved,
        versions=versions() | {"hardware": hardware(prepared.device)},
        git_commit=git_commit(REPOSITORY),
        command=settings.command,
        seconds=seconds,
        paths={name: str(path) for name, path in figures.items()} | {"folder": str(folder)},
        float_parts=prepared.float_parts,
    )
    write_json(folder / "report.json", {"schema": "hawq.report/1", **to_dict(report)})
    for name, path in figures.items():
        log.image(f"figures/{name}", path)
    log.table("results", RESULT_COLUMNS, [result_cells(row) for row in rows])
    log.artifact(f"{folder.name}-plan", "plan", folder / "plan.json")
    log.artifact(f"{folder.name}-report", "report", folder / "report.json")
    log.artifact(f"{folder.name}-model", "model", folder / "model.safetensors")
    log.summary({"float_accuracy": rows[0].accuracy, "accuracy": rows[-1].accuracy, "w_comp": rows[-1].w_comp})
    print("\n" + results_table(rows))


def _result_rows(found: Findings) -> list[ResultRow]:
    """The float network, then every packed one, in the papers' columns."""
    assert found.source is not None
    network, full = found.source.network, str(FLOAT_BITS)
    published = published_bytes(network.state_dict())
    size = checkpoint_bytes(network)
    rows = [ResultRow("float", full, full, found.source.accuracy, 1.0, size, 1.0, paper_size_mib(published, 1.0))]
    for name, packed in found.packed.items():
        rows.append(result_row(found.tuned[name].plan, packed.accuracy, packed.size_bytes, published))
    return rows


def _plan_rows(plan: BitPlan) -> list[tuple[str, int, int]]:
    return [(name, bits.weight_bits, bits.activation_bits) for name, bits in plan.precisions.items()]


def _sensitivity_table(sensitivity: Sensitivity, plan: BitPlan | None) -> str:
    columns, rows = sensitivity_rows(sensitivity, plan)
    shown = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return markdown(columns, shown)
