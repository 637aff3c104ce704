"""The allocation: how many bits every block gets, how sure that is, and the frontier around it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hawq.allocation import IntegerProgram, Monotone, Scored, allocate, confidence, frontier, measures_plans
from hawq.experiment.artifacts import fingerprint
from hawq.experiment.console import LESS, table
from hawq.experiment.run import Run
from hawq.files import write_whole
from hawq.measurement import measured
from hawq.records import PLAN_SCHEMA, SENSITIVITY_SCHEMA, BitPlan, Sensitivity, StageRecord, dump_record, to_dict
from hawq.report import frontier_figure, limits_table, sensitivity_rows

if TYPE_CHECKING:
    from hawq.experiment.stages.float_network import FloatNetwork

FRONTIER_SCHEMA = "hawq.frontier/2"


def allocation(run: Run, float_network: FloatNetwork | None, analysis: Sensitivity) -> BitPlan:
    """The plan: files, tables, figure.

    One that follows from the analysis alone takes little time: it is not cached, and its key is its hash. One that is
    found by measuring plans is cached, and resumed where it was left.
    """
    settings, folder, wanted = run.settings, run.folder, run.settings.allocation
    if measures_plans(settings.bits):
        from hawq.experiment.stages.plan_search import searched_plan  # needs PyTorch, which a plan from a file does not

        assert float_network is not None, "a run that starts from a file has refused to measure plans"
        plan = searched_plan(run, float_network, analysis)
        print(f"\n{plan.searched}")
    else:
        plan = _computed(run, analysis)
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


def _computed(run: Run, analysis: Sensitivity) -> BitPlan:
    """The plan that follows from the analysis, and how sure it is."""
    bits, draws, seed = run.settings.bits, run.settings.allocation.confidence_draws, run.settings.options.seed
    with measured() as cost:
        plan = allocate(analysis, bits)
        if isinstance(bits, Scored) and draws:
            plan = replace(plan, confidence=confidence(analysis, bits, plan, draws, seed))
    run.records.append(StageRecord("allocation", fingerprint(to_dict(plan)), False, cost.seconds, cost.peak_memory_mib))
    return plan


def _rows(plan: BitPlan) -> list[tuple[str, int, int]]:
    return [(name, bits.weight_bits, bits.activation_bits) for name, bits in plan.precisions.items()]
