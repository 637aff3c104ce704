"""table.html: many runs in one page, accuracy or predicted increase against size, seeds folded into mean ± spread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hawq.files import write_whole
from hawq.report.blocks_view import formula
from hawq.report.intervals import wilson
from hawq.report.lines import Entry, Line, Network, of_records, of_runs
from hawq.report.page import render
from hawq.report.results import Recorded
from hawq.report.tables import size_label
from hawq.report.wording import number, plural, signed


def write_table(
    path: Path,
    entries: Sequence[Entry],
    title: str,
    recorded: Sequence[Recorded] = (),
    *,
    by: str = "method",
    networks: Sequence[str] = (),
) -> Path:
    """Writes a self-contained page that lists and plots the networks of many runs, and returns its path.

    Runs whose commands differ only in the seed make one line. A run that failed or is not finished is listed as that;
    float networks and uniform baselines that several runs share are listed once. Runs that made a plan and did not
    train it are shown by the increase of the loss that their score predicts. `recorded` results are listed too.

    Args:
        path: of the page.
        entries: the runs.
        title: of the page.
        recorded: further results.
        by: what the colours of the plot tell apart: "method" or "kind" (float, uniform, direct, mixed).
        networks: those that come first, in this order.
    """
    order = {name: place for place, name in enumerate(networks)}
    found = [*of_runs(entries), *of_records(recorded)]
    found.sort(key=lambda line: order.get(line.network, len(order)))
    lines = [_shown(line, path.parent) for line in found]
    open_ones = [
        {"label": entry.label, "state": entry.state, "error": entry.error, "report": _report(entry.folder, path.parent)}
        for entry in entries
        if entry.state != "finished"
    ]
    _mark_front(lines)
    runs = sum(1 for entry in entries if entry.state == "finished")
    scores = sorted({line["score"] for line in lines if line["predicted"] is not None})
    context = {
        "title": title,
        "lines": lines,
        "failed": open_ones,
        "headline": _headline(lines, runs, len(open_ones)),
        "trained": any(line["accuracy"] is not None for line in lines),
        "scores": scores,
    }
    scripts = ("d3.min.js", "plot.umd.min.js", "common.js", "table.js")
    page = render("table.html.j2", data={"lines": lines, "by": by}, scripts=scripts, **context)
    return write_whole(path, page.encode())


def _shown(line: Line, beside: Path) -> dict[str, Any]:
    """A line as the page takes it."""
    first = line.networks[0]
    accuracy = _all(line, lambda one: one.accuracy)
    low, high = wilson(mean(accuracy), first.images) if accuracy and first.images else (None, None)
    size = mean(one.size_bytes for one in line.networks)
    differences = _all(line, lambda one: one.difference.value if one.difference else None)
    predicted = _all(line, lambda one: one.predicted)
    return {
        "network": line.network,
        "method": first.method,
        "kind": first.kind,
        "label": line.label,
        "command": line.command,
        "accuracy": mean(accuracy) if accuracy else None,
        "shown": _with_spread(accuracy, lambda value: f"{value:.2f}"),
        "low": low,
        "high": high,
        "images": first.images,
        "seeds": len(line.networks),
        "difference": mean(differences) if differences else None,
        "change": signed(mean(differences)) if differences else "–",
        "bytes": size,
        "size": size_label(round(size)),
        "w_comp": mean(one.w_comp for one in line.networks),
        "bits": first.bits,
        "bops": first.bops,
        "predicted": mean(predicted) if predicted else None,
        "expected": _with_spread(predicted, number),
        "score": formula(first.score) if first.score else None,
        "reports": [[seed, _report(folder, beside)] for seed, folder in line.reports],
        "reference": line.reference,
    }


def _all(line: Line, value: Callable[[Network], float | None]) -> list[float]:
    """A figure of every network of a line; empty where one of them lacks it."""
    found = [value(one) for one in line.networks]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else []


def _with_spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean ± standard deviation over the seeds."""
    if not values:
        return "–"
    spread = stdev(values) if len(values) > 1 else 0.0
    return shown(mean(values)) + (f" ± {shown(spread)}" if spread else "")


def _report(folder: Path, beside: Path) -> str | None:
    """The way from the table to a run's page, None where there is none."""
    page = folder / "report.html"
    return Path(os.path.relpath(page, beside)).as_posix() if page.is_file() else None


def _mark_front(lines: Sequence[dict[str, Any]]) -> None:
    """Marks the lines that no other beats in both size and accuracy, or predicted increase where none was measured."""
    for line in lines:
        known = line["accuracy"] is not None or line["predicted"] is not None
        line["front"] = known and not any(_beats(other, line) for other in lines)


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `one` is at least as good in both size and merit as another line of its kind, and better in one."""
    if one["network"] != other["network"]:
        return False
    if other["accuracy"] is not None:
        if one["accuracy"] is None:
            return False
        mine, its = one["accuracy"], other["accuracy"]
    else:
        if one["predicted"] is None or other["predicted"] is None or one["score"] != other["score"]:
            return False
        mine, its = -one["predicted"], -other["predicted"]
    return bool(one["bytes"] <= other["bytes"] and mine >= its and (one["bytes"], -mine) != (other["bytes"], -its))


def _headline(lines: Sequence[dict[str, Any]], runs: int, open_ones: int) -> str:
    """How many runs there are, and what the best small one reaches; of several networks none can be called the best."""
    networks = {line["network"] for line in lines}
    text = plural(runs, "run") + (f" of {len(networks)} networks" if len(networks) > 1 else "")
    if open_ones:
        text += f", {open_ones} failed or not finished"
    if len(networks) > 1:
        return text
    own = [line for line in lines if not line["reference"]]
    trained = [line for line in own if line["accuracy"] is not None]
    if trained:
        best = max(trained, key=lambda line: (line["accuracy"], -line["bytes"]))
        return f"{text}: {best['size']} reach {best['shown']}\N{NO-BREAK SPACE}%, the most accurate of them"
    if not own:
        return text
    least, most = (choose(own, key=lambda line: line["bytes"])["size"] for choose in (min, max))
    sizes = least if least == most else f"{least} to {most}"
    return f"{text}: plans of {sizes}; nothing is trained or measured yet"
