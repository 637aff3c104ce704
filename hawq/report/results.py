"""Recorded results (docs/results/*.json), and the tables of README and docs that are made from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hawq.files import write_whole
from hawq.records import ResultRow, RunReport, from_dict, to_dict
from hawq.report.tables import RESULT_COLUMNS, markdown, result_cells

SCHEMA = "hawq.result/2"
_ACCURACY = RESULT_COLUMNS.index("accuracy %")


@dataclass(frozen=True)
class RecordedRow:
    """One network: its line of the results table, and its fine-tuning.

    Args:
        result: the line of the table.
        steps: of fine-tuning.
        curve: (step, accuracy in percent) pairs measured during it.
        borders: the last step of each phase but the last one; a further block was quantised at all but the last one.
    """

    result: ResultRow
    steps: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    borders: tuple[int, ...] = ()


@dataclass(frozen=True)
class RecordedRun:
    """One run; `packed` names the file, next to the record, that holds its last network."""

    seed: int
    hours: float
    git_commit: str | None
    rows: tuple[RecordedRow, ...]
    packed: str | None = None


@dataclass(frozen=True)
class Recorded:
    """The results of one command, with each seed that it was run with.

    Args:
        network, command, hardware, date, versions, note: as shown to the reader.
        batch_size: of fine-tuning.
        epochs: None where steps were given instead.
        curve_images: number of test images that the curves were measured on, None for all.
        runs: one per seed.
        place: order in the tables of results; None leaves the record out.
        fills: method → the paper's row that it corresponds to, as table/row.

    Raises:
        ValueError: no runs, or runs that are not about the same networks.
    """

    network: str
    command: str
    hardware: str
    date: str
    versions: str
    note: str
    batch_size: int
    epochs: float | None
    curve_images: int | None
    runs: tuple[RecordedRun, ...]
    place: int | None = None
    fills: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = {tuple(row.result.method for row in run.rows) for run in self.runs}
        if len(methods) != 1:
            raise ValueError(f"runs of one record need the same methods, here they are {sorted(methods) or 'none'}")

    def cells(self) -> list[tuple[str, ...]]:
        """Cells as in `RESULT_COLUMNS`, one line per method: means over the seeds, accuracy ± standard deviation."""
        return [_cells([row.result for row in rows]) for rows in zip(*(run.rows for run in self.runs), strict=True)]

    def cells_for(self, row: str) -> dict[str, str]:
        """Column → cell of the method that fills `row` (table/row); empty if none does."""
        method = next((method for method, filled in self.fills.items() if filled == row), None)
        found = next((cells for cells in self.cells() if cells[0] == method), ())
        return dict(zip(RESULT_COLUMNS, found, strict=False))

    def accuracies(self, row: str) -> dict[int, float]:
        """Seed → accuracy in percent of the method that fills `row` (table/row); empty if none does."""
        methods = [method for method, filled in self.fills.items() if filled == row]
        return {run.seed: x.result.accuracy for run in self.runs for x in run.rows if x.result.method in methods}

    def packed(self) -> str | None:
        """The packed file that bears the record's own name; those of further runs have an addition to it."""
        return min((run.packed for run in self.runs if run.packed), key=len, default=None)

    def circumstances(self) -> str:
        """Seeds, steps, hours, hardware, versions and date in one line."""
        seeds = [str(run.seed) for run in self.runs]
        shown = f"seeds {', '.join(seeds)}: mean ± standard deviation" if len(seeds) > 1 else f"seed {seeds[0]}"
        epochs = "" if self.epochs is None else f", {self.epochs:g} epochs"
        steps = f"{self.runs[0].rows[-1].steps:,} steps of {self.batch_size} images{epochs}"
        hours = f"{sum(run.hours for run in self.runs):.2g} hours on {self.hardware}"
        return "; ".join([shown, steps, hours, self.versions, self.date])


def _cells(results: Sequence[ResultRow]) -> tuple[str, ...]:
    accuracies = [result.accuracy for result in results]
    cells = result_cells(
        replace(
            results[0],
            accuracy=mean(accuracies),
            w_comp=mean(result.w_comp for result in results),
            size_bytes=round(mean(result.size_bytes for result in results)),
        )
    )
    spread = f" ± {stdev(accuracies):.2f}" if len(results) > 1 else ""
    return (*cells[:_ACCURACY], cells[_ACCURACY] + spread, *cells[_ACCURACY + 1 :])


def recorded_rows(folder: Path, report: RunReport) -> tuple[RecordedRow, ...]:
    """The float network of a finished run, then each fine-tuned one with its history; the plan's own comes last.

    Args:
        folder: of the run.
        report: read from it.

    Raises:
        OSError: a history that is not there.
    """
    places = [folder / "direct", folder][-(len(report.rows) - 1) :]
    rows = [RecordedRow(report.rows[0])]
    for place, result in zip(places, report.rows[1:], strict=True):
        history = json.loads((place / "finetune" / "history.json").read_text())
        curve = [(row["step"], round(row["accuracy"], 3)) for row in history if "accuracy" in row]
        steps = history[-1]["step"] if history else 0
        rows.append(RecordedRow(result, steps, tuple(thinned(curve)), tuple(phase_borders(history))))
    return tuple(rows)


def thinned(curve: Sequence[tuple[int, float]], most: int = 100) -> Sequence[tuple[int, float]]:
    """At most `most` (step, accuracy) points, evenly spaced, including the first and the last."""
    if len(curve) <= most:
        return curve
    return [curve[round(place * (len(curve) - 1) / (most - 1))] for place in range(most)]


def phase_borders(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The last step of every phase but the last one."""
    ends = [list(rows)[-1]["step"] for _, rows in groupby(history, key=lambda row: row["phase"])]
    return ends[:-1]


def read_result(path: Path) -> Recorded:
    """One record. Raises ValueError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no recorded result: it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is no recorded result: its schema must be {SCHEMA}")
    return from_dict(content, Recorded)


def read_results(folder: Path) -> list[Recorded]:
    """All records of a folder in their order, those without a place last.

    Raises ValueError naming a file that is no record.
    """
    found = [read_result(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda recorded: (recorded.place is None, recorded.place))


def record_of(row: str, results: Sequence[Recorded]) -> Recorded | None:
    """The last record that fills a row (table/row); None if none does."""
    return next((recorded for recorded in reversed(results) if row in recorded.fills.values()), None)


def recorded_accuracy(path: Path) -> tuple[float, str] | None:
    """Accuracy in percent that a record next to a packed file states for it, and which run; None if none does."""
    for record in sorted(path.resolve().parent.glob("*.json")):
        try:
            runs = read_result(record).runs
        except ValueError:  # some other file
            continue
        for run in runs:
            if run.packed == path.name:
                return run.rows[-1].result.accuracy, f"{record.name}, seed {run.seed}"
    return None


def write_result(path: Path, recorded: Recorded) -> Path:
    """Writes a record as indented JSON, each list of numbers on one line; returns `path`."""
    text = json.dumps({"schema": SCHEMA, **to_dict(recorded)}, indent=2, allow_nan=False, ensure_ascii=False)
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\[[-\d.,\s\[\]]+\]', _on_one_line, text)
    return write_whole(path, (text + "\n").encode())


def _on_one_line(found: re.Match[str]) -> str:
    """A list of numbers without line breaks; a string unchanged."""
    return found[0] if found[0].startswith('"') else re.sub(r"\s+", "", found[0]).replace(",", ", ")


def summary_table(results: Sequence[Recorded], most: int = 9) -> str:
    """The README's table: a line for each of the first `most` records with a place, with a link to its packed file.

    A line shows the last, quantised network of its record, and the accuracy of the float network that it began as.
    """
    columns = ("network, data", "method", "w-bits", "a-bits", "float %", "quantised %", "W-Comp", "packed file")
    lines = []
    for recorded in [one for one in results if one.place is not None][:most]:
        cells = recorded.cells()
        method, weights, activations, accuracy, w_comp, size, _ = cells[-1]
        packed = recorded.packed()
        file = f"[{size}](docs/results/{packed})" if packed else size
        parent = cells[0][_ACCURACY].removesuffix(" ± 0.00")  # all seeds began at one float network
        lines.append((recorded.network, method, weights, activations, parent, accuracy, w_comp, file))
    return markdown(columns, lines)


def full_results(results: Sequence[Recorded]) -> str:
    """The table of docs/results.md, and a numbered note for each record; packed files are linked.

    Consecutive records that share a network and its float row show that row once.
    """
    cells, notes = [], []
    parent: tuple[str, tuple[str, ...]] | None = None
    for number, recorded in enumerate((one for one in results if one.place is not None), start=1):
        lines = recorded.cells()
        packed = recorded.packed()
        if packed:
            lines[-1] = (f"[{lines[-1][0]}](results/{packed})", *lines[-1][1:])
        shown = lines[1:] if parent == (recorded.network, lines[0]) else lines
        parent = (recorded.network, lines[0])
        labels = [f"{recorded.network} ({number})"] + [""] * (len(shown) - 1)
        cells += [(label, *line) for label, line in zip(labels, shown, strict=True)]
        note = f": {recorded.note}" if recorded.note else ""
        notes.append(f"{number}. `{recorded.command}`{note} ({recorded.circumstances()})")
    return "\n".join([markdown(("network, data", *RESULT_COLUMNS), cells), "", *notes])
