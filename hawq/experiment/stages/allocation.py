"""The allocation: how many bits every block gets, how sure that is, and the frontier around it."""

from __future__ import annotations

from dataclasses import replace

from hawq.allocation import IntegerProgram, Monotone, Scored, allocate, confidence, frontier
from hawq.experiment.artifacts import fingerprint
from hawq.experiment.console import LESS, table
from hawq.experiment.run import Run
from hawq.files import write_whole
from hawq.measurement import measured
from hawq.records import PLAN_SCHEMA, SENSITIVITY_SCHEMA, BitPlan, Sensitivity, StageRecord, dump_record, to_dict
from hawq.report import frontier_figure, limits_table, sensitivity_rows

FRONTIER_SCHEMA = "hawq.frontier/2"


def allocation(run: Run, analysis: Sensitivity) -> BitPlan:
    """The plan: files, tables, figure. It takes little time, so it is not cached; its key is the hash of the plan."""
    settings, folder, wanted = run.settings, run.folder, run.settings.allocation
    with measured() as cost:
        plan = allocate(analysis, settings.bits)
        if isinstance(settings.bits, Scored) and wanted.confidence_draws:
            draws, seed = wanted.confidence_draws, settings.options.seed
            plan = replace(plan, confidence=confidence(analysis, settings.bits, plan, draws, seed))
    key = fingerprint(to_dict(plan))
    run.records.append(StageRecord("allocation", key, False, cost.seconds, cost.peak_memory_mib))
    write_whole(folder / "sensitivity.json", dump_record(SENSITIVITY_SCHEMA, analysis))
    write_whole(folder / "plan.json", dump_record(PLAN_SCHEMA, plan))
    run.log.table("sensitivity", *sensitivity_rows(analysis, plan))
    run.log.table("plan", ("block", "weight_bits", "activation_bits"), _rows(plan))
    print("\n" + table(*sensitivity_rows(analysis, plan), drop=LESS) + "\n\n" + limits_table(plan) + "\n")
    if isinstance(settings.bits, (IntegerProgram, Monotone)) and wanted.frontier_points:
        front = frontier(analysis, settings.bits, wanted.frontier_points)
        write_whole(folder / "frontier.json", dump_record(FRONTIER_SCHEMA, front))
        run.log.image("figures/frontier", frontier_figure(front, plan, folder / "figures" / "frontier.png"))
    return plan


def _rows(plan: BitPlan) -> list[tuple[str, int, int]]:
    return [(name, bits.weight_bits, bits.activation_bits) for name, bits in plan.precisions.items()]
