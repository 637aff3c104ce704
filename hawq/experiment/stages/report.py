"""The report: report.json, the figures and the results table."""

from __future__ import annotations

import time

from hawq.costs import checkpoint_bytes, paper_size_mib, published_bytes
from hawq.experiment.artifacts import write_json
from hawq.experiment.config.names import REPOSITORY
from hawq.experiment.console import table
from hawq.experiment.run import Run
from hawq.experiment.stages.export import Packed
from hawq.experiment.stages.finetune import MAIN, Tuned
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.records import FLOAT_BITS, BitPlan, Difference, ResultRow, RunReport, Sensitivity, to_dict
from hawq.report import (
    RESULT_COLUMNS,
    finetuning_figure,
    git_commit,
    hardware,
    paired_difference,
    result_cells,
    result_row,
    sensitivity_figure,
    versions,
)

REPORT_SCHEMA = "hawq.report/1"


def report(
    run: Run,
    float_network: FloatNetwork,
    analysis: Sensitivity,
    allocation: BitPlan,
    finetune: dict[str, Tuned],
    export: dict[str, Packed],
) -> RunReport:
    """Everything the run found, in one file, in figures, and in a table on the console."""
    settings, folder = run.settings, run.folder
    rows = _rows(float_network, finetune, export)
    figures = {"sensitivity": sensitivity_figure(analysis, allocation, folder / "figures" / "sensitivity.png")}
    histories = {tuned.plan.method: tuned.history for tuned in reversed(finetune.values())}
    if any(histories.values()):  # finetune.epochs=0 leaves nothing to draw
        path = folder / "figures" / "finetuning.png"
        figures["finetuning"] = finetuning_figure(histories, float_network.accuracy, path)
    result = RunReport(
        rows=tuple(rows),
        stages=tuple(run.records),
        plan=allocation,
        config=settings.resolved,
        versions=versions() | {"hardware": hardware(run.inputs.device)},
        git_commit=git_commit(REPOSITORY),
        command=settings.command,
        seconds=round(time.monotonic() - run.started, 2),
        paths={name: str(path) for name, path in figures.items()} | {"folder": str(folder)},
        float_parts=run.inputs.float_parts,
        over_baseline=_over_baseline(export),
    )
    write_json(folder / "report.json", {"schema": REPORT_SCHEMA, **to_dict(result)})
    for name, path in figures.items():
        run.log.image(f"figures/{name}", path)
    run.log.table("results", RESULT_COLUMNS, [result_cells(row) for row in rows])
    for name, file in (("plan", "plan.json"), ("report", "report.json"), ("model", "model.safetensors")):
        run.log.artifact(f"{folder.name}-{name}", name, folder / file)
    run.log.summary({"float_accuracy": rows[0].accuracy, "accuracy": rows[-1].accuracy, "w_comp": rows[-1].w_comp})
    print("\n" + table(RESULT_COLUMNS, [result_cells(row) for row in rows], drop=("A-Comp", "a-bits", "w-bits")))
    return result


def _rows(float_network: FloatNetwork, finetune: dict[str, Tuned], export: dict[str, Packed]) -> list[ResultRow]:
    """The float network, then every packed one, in the papers' columns."""
    network, full = float_network.network, str(FLOAT_BITS)
    published, size = published_bytes(network.state_dict()), checkpoint_bytes(network)
    parent = float_network.measured
    mib, images = paper_size_mib(published, 1.0), parent.num_images
    rows = [ResultRow("float", full, full, parent.accuracy, 1.0, size, 1.0, mib, num_images=images)]
    for name, packed in export.items():
        rows.append(result_row(finetune[name].plan, packed.measured, packed.size_bytes, published, parent))
    return rows


def _over_baseline(export: dict[str, Packed]) -> Difference | None:
    """The plan's network minus the uniform one, on the same images."""
    if "direct" not in export:
        return None
    return paired_difference(export[MAIN].measured, export["direct"].measured)
