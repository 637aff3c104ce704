"""The networks of many runs as lines of a table: those that differ only in the seed make one line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hawq.records import FLOAT_BITS, BitPlan, Difference, ResultRow
from hawq.report.page import title_of
from hawq.report.results import Recorded
from hawq.report.run_folder import RunFolder, read_run
from hawq.report.tables import bits_label

FLOAT, UNIFORM, DIRECT, MIXED = KINDS = ("float", "uniform", "direct", "mixed")
"""Kinds of networks: float, one bit-width, one bit-width except in the first and last block, bits chosen by block."""

_SEEDS = ("seed",)  # keys that tell repetitions of one experiment apart


@dataclass(frozen=True)
class Entry:
    """A run to be listed.

    Args:
        label: what it is called.
        folder: of the run.
        state: "finished", "failed" or "not finished".
        error: why it failed.
        command: that makes it; a `report.json` in the folder states its own.
        network: architecture and data; None takes them from the run.
    """

    label: str
    folder: Path
    state: str = "finished"
    error: str = ""
    command: str = ""
    network: str | None = None


@dataclass(frozen=True)
class Network:
    """One network of one run: its size, and its accuracy, or what a plan that was not trained is predicted to cost.

    Args:
        method, bits: as in the table of results.
        size_bytes: of the packed file; of a plan, an upper bound, or its weights alone where the rest is not known.
        w_comp: 32 Σ n_i / Σ b_i n_i.
        accuracy: in percent on `images` test images; None for a plan that was not trained.
        difference: to the float network on the same images.
        bops: Σ w_bits · a_bits · MACs.
        predicted: Σ of the increases of the loss that `score` predicts.
    """

    method: str
    bits: str
    size_bytes: int
    w_comp: float
    accuracy: float | None = None
    images: int | None = None
    difference: Difference | None = None
    bops: float | None = None
    predicted: float | None = None
    score: str | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.method == FLOAT:
            return FLOAT
        if not self.bits.endswith("MP"):
            return UNIFORM
        return DIRECT if self.method.startswith(DIRECT) else MIXED


@dataclass
class Line:
    """Networks that differ only in the seed.

    Args:
        network: architecture and data.
        label: the options that tell the run from others.
        command: that makes the first of them.
        networks: one for each seed.
        reports: (seed, run folder) pairs.
        reference: whether this is a network that runs are compared with, not their own result.
    """

    network: str
    label: str
    command: str
    networks: list[Network] = field(default_factory=list)
    reports: list[tuple[str, Path]] = field(default_factory=list)
    reference: bool = False


def of_runs(entries: Sequence[Entry]) -> list[Line]:
    """One line per experiment and network, in the order in which they are first met.

    Float networks and uniform baselines that several runs share are listed once.
    """
    lines: dict[tuple[Any, ...], Line] = {}
    seen: set[tuple[Any, ...]] = set()
    for entry in entries:
        if entry.state != "finished":
            continue
        run = read_run(entry.folder, entry.command)
        networks, seed = _networks(run), run.config.get("seed")
        for place, one in enumerate(networks):
            own = place == len(networks) - 1
            name = entry.network or title_of(run)
            model = (name, run.config.get("model", {}).get("name"), run.config.get("dataset", {}).get("_target_"))
            key: tuple[Any, ...] = (*model, one.method)
            if own:
                key = (*key, without_seed(run.command or str(entry.folder)))
            else:
                key = (*key, one.bits, round(one.w_comp, 6), one.bops)
                if (*key, seed, one.accuracy) in seen:
                    continue
                seen.add((*key, seed, one.accuracy))
            label = without_seed(entry.label) if own else ""
            line = lines.setdefault(key, Line(name, label, run.command, reference=not own))
            line.networks.append(one)
            line.reports.append((str("–" if seed is None else seed), entry.folder))
    return list(lines.values())


def of_records(recorded: Sequence[Recorded]) -> list[Line]:
    """One line per network of each record; those that several records share are listed once."""
    lines: dict[tuple[Any, ...], Line] = {}
    for record in recorded:
        for place, rows in enumerate(zip(*(run.rows for run in record.runs), strict=True)):
            networks = [_measured(row.result) for row in rows]
            key = (record.network, networks[0].method, networks[0].size_bytes, *(one.accuracy for one in networks))
            own = place == len(record.runs[0].rows) - 1
            line = Line(record.network, record.note if own else "", record.command, networks, reference=not own)
            lines.setdefault(key, line)
    return list(lines.values())


def without_seed(command: str) -> str:
    """A command line or a label without what it says of the seed."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in _SEEDS]
    return shlex.join(kept)


def planned(plan: BitPlan) -> Network:
    """The network that a plan would make, not trained."""
    cost = plan.cost
    return Network(
        method=plan.method,
        bits=bits_label([precision.weight_bits for precision in plan.precisions.values()]),
        size_bytes=cost.weight_bytes if cost.packed_bytes is None else cost.packed_bytes,
        w_comp=cost.w_comp,
        bops=cost.bops,
        predicted=plan.objective,
        score=plan.score,
    )


def _networks(run: RunFolder) -> list[Network]:
    """The networks of a run, its own result last: those of its report, or else its plan."""
    if run.report is None:
        return [planned(run.plan)] if run.plan else []
    rows = run.report.rows
    return [_of_report(run, row, own=place == len(rows) - 1) for place, row in enumerate(rows)]


def _of_report(run: RunFolder, row: ResultRow, *, own: bool) -> Network:
    """A row of a report, with what only the plan behind it tells."""
    plan = run.plan if own else run.direct if run.direct and row.method == run.direct.method else None
    if plan:
        return _measured(row, plan.cost.bops, plan.objective, plan.score)
    macs = [block.macs for block in run.sensitivity.blocks] if run.sensitivity else []
    known = [one for one in macs if one is not None]
    return _measured(row, FLOAT_BITS**2 * sum(known) if macs and len(known) == len(macs) else None)


def _measured(
    row: ResultRow, bops: float | None = None, predicted: float | None = None, score: str | None = None
) -> Network:
    return Network(
        method=row.method,
        bits=row.weight_bits,
        size_bytes=row.size_bytes,
        w_comp=row.w_comp,
        accuracy=row.accuracy,
        images=row.num_images,
        difference=row.difference,
        bops=bops,
        predicted=predicted,
        score=score,
    )
