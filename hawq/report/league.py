"""table.html: many runs in one page, accuracy against size, seeds folded into mean ± spread."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hawq.files import write_whole
from hawq.records import FLOAT_BITS, ResultRow
from hawq.report.intervals import wilson
from hawq.report.page import render, title_of
from hawq.report.results import Recorded
from hawq.report.run_folder import RunFolder, read_run
from hawq.report.tables import size_label
from hawq.report.wording import signed

_SEEDS = ("seed",)  # keys that tell repetitions of one experiment apart


@dataclass(frozen=True)
class Entry:
    """A run to be listed: what it is called, its folder, "finished", "failed" or "not finished", and why it failed."""

    label: str
    folder: Path
    state: str = "finished"
    error: str = ""


@dataclass
class _Line:
    """Networks that differ only in the seed."""

    network: str
    method: str
    label: str
    command: str
    rows: list[ResultRow] = field(default_factory=list)
    bops: float | None = None
    reports: list[tuple[str, str]] = field(default_factory=list)
    reference: bool = False


def write_table(path: Path, entries: Sequence[Entry], title: str, recorded: Sequence[Recorded] = ()) -> Path:
    """Writes a self-contained page that lists and plots the networks of many runs, and returns its path.

    Runs whose commands differ only in the seed make one line. A run that failed or is not finished is listed as that;
    float networks and uniform baselines that several runs share are listed once. `recorded` results are listed too.
    """
    lines = [_shown(line, path.parent) for line in [*_folded(entries), *_of_records(recorded)]]
    open_ones = [
        {"label": entry.label, "state": entry.state, "error": entry.error, "report": _report(entry.folder, path.parent)}
        for entry in entries
        if entry.state != "finished"
    ]
    _mark_front(lines)
    runs = sum(1 for entry in entries if entry.state == "finished")
    context = {"title": title, "lines": lines, "failed": open_ones, "headline": _headline(lines, runs, len(open_ones))}
    scripts = ("d3.min.js", "plot.umd.min.js", "common.js", "table.js")
    page = render("table.html.j2", data={"lines": lines}, scripts=scripts, **context)
    return write_whole(path, page.encode())


def _folded(entries: Sequence[Entry]) -> list[_Line]:
    """One line per experiment and network, in the order in which they are first met."""
    lines: dict[tuple[Any, ...], _Line] = {}
    seen: set[tuple[Any, ...]] = set()
    for entry in entries:
        run = read_run(entry.folder)
        rows = run.report.rows if run.report and entry.state == "finished" else ()
        for place, row in enumerate(rows):
            own = place == len(rows) - 1
            model = (run.config.get("model", {}).get("name"), run.config.get("dataset", {}).get("_target_"))
            key: tuple[Any, ...] = (*model, row.method, row.weight_bits, round(row.w_comp, 6), row.activation_bits)
            if own:
                key = (*key[:3], without_seed(run.command))
            elif (*key, run.config.get("seed"), row.accuracy) in seen:  # a network that several runs share
                continue
            seen.add((*key, run.config.get("seed"), row.accuracy))
            label = without_seed(entry.label) if own else ""
            line = lines.setdefault(key, _Line(title_of(run), row.method, label, run.command, reference=not own))
            line.rows.append(row)
            line.bops = _bops(run, own, row) if line.bops is None else line.bops
            line.reports.append((str(run.config.get("seed", "–")), str(entry.folder)))
    return list(lines.values())


def _of_records(recorded: Sequence[Recorded]) -> list[_Line]:
    """One line per network of each record; those that several records share are listed once."""
    lines: dict[tuple[Any, ...], _Line] = {}
    for one in recorded:
        for place, rows in enumerate(zip(*(run.rows for run in one.runs), strict=True)):
            results = [row.result for row in rows]
            key = (one.network, results[0].method, results[0].size_bytes, tuple(result.accuracy for result in results))
            own = place == len(one.runs[0].rows) - 1
            line = _Line(one.network, results[0].method, one.note if own else "", one.command, reference=not own)
            line.rows += results
            line.reports = []
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


def _bops(run: RunFolder, own: bool, row: ResultRow) -> float | None:
    """Σ w_bits · a_bits · MACs of one network of a run; None where its MACs are not known."""
    if own:
        return run.plan.cost.bops if run.plan else None
    if run.direct and row.method == run.direct.method:
        return run.direct.cost.bops
    macs = [block.macs for block in run.sensitivity.blocks] if run.sensitivity else []
    known = [one for one in macs if one is not None]
    return FLOAT_BITS**2 * sum(known) if macs and len(known) == len(macs) else None


def _shown(line: _Line, beside: Path) -> dict[str, Any]:
    """A line as the page takes it."""
    accuracies = [row.accuracy for row in line.rows]
    middle, count = mean(accuracies), len(accuracies)
    spread = stdev(accuracies) if count > 1 else None
    images = line.rows[0].num_images
    low, high = wilson(middle, images) if images else (None, None)
    size = mean(row.size_bytes for row in line.rows)
    differences = [row.difference.value for row in line.rows if row.difference]
    return {
        "network": line.network,
        "method": line.method,
        "label": line.label,
        "command": line.command,
        "accuracy": middle,
        "shown": f"{middle:.2f}" + (f" ± {spread:.2f}" if spread else ""),
        "low": low,
        "high": high,
        "seeds": count,
        "difference": mean(differences) if len(differences) == count else None,
        "change": signed(mean(differences)) if differences and len(differences) == count else "–",
        "bytes": size,
        "size": size_label(round(size)),
        "w_comp": mean(row.w_comp for row in line.rows),
        "bits": line.rows[0].weight_bits,
        "bops": line.bops,
        "reports": [[seed, _report(Path(folder), beside)] for seed, folder in line.reports],
        "reference": line.reference,
    }


def _report(folder: Path, beside: Path) -> str | None:
    """The way from the table to a run's page, None where there is none."""
    page = folder / "report.html"
    return Path(os.path.relpath(page, beside)).as_posix() if page.is_file() else None


def _mark_front(lines: Sequence[dict[str, Any]]) -> None:
    """Marks the lines that no other beats in both accuracy and size."""
    for line in lines:
        line["front"] = not any(
            other["bytes"] <= line["bytes"]
            and other["accuracy"] >= line["accuracy"]
            and (other["bytes"], -other["accuracy"]) != (line["bytes"], -line["accuracy"])
            for other in lines
            if other["network"] == line["network"]
        )


def _headline(lines: Sequence[dict[str, Any]], runs: int, open_ones: int) -> str:
    """How many runs there are, and what the best small one reaches."""
    text = f"{runs} {'run' if runs == 1 else 'runs'}"
    if open_ones:
        text += f", {open_ones} failed or not finished"
    own = [line for line in lines if not line["reference"]]
    if not own:
        return text
    best = max(own, key=lambda line: (line["accuracy"], -line["bytes"]))
    return f"{text}: {best['size']} reach {best['shown']}\N{NO-BREAK SPACE}%, the most accurate of them"
