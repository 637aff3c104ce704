"""Results that were recorded (docs/results/*.json), and the table of the README that is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hawq.records import from_dict
from hawq.report.tables import RESULT_COLUMNS, markdown

SCHEMA = "hawq.result/1"


@dataclass(frozen=True)
class Recorded:
    """One run: what was typed, where and when, and the table it printed.

    `rows` are cells in the order of `RESULT_COLUMNS`; `fills` maps a method to the paper's row that it stands for, as
    table/row; `place` orders the runs in the README.
    """

    place: int
    network: str
    command: str
    seed: int
    hardware: str
    date: str
    versions: str
    note: str
    rows: tuple[tuple[str, ...], ...]
    fills: dict[str, str] = field(default_factory=dict)

    def accuracy_for(self, row: str) -> str | None:
        """Accuracy of the method that fills `row` (table/row), None if none does."""
        method = next((method for method, filled in self.fills.items() if filled == row), None)
        return next((cells[RESULT_COLUMNS.index("accuracy %")] for cells in self.rows if cells[0] == method), None)


def read_results(folder: Path) -> list[Recorded]:
    """All recorded runs, in their order. Raises ValueError naming the file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if content.pop("schema", None) != SCHEMA:
            raise ValueError(f"{path} is no recorded result: its schema must be {SCHEMA}")
        recorded = from_dict(content, Recorded)
        if any(len(cells) != len(RESULT_COLUMNS) for cells in recorded.rows):
            raise ValueError(f"{path}: each row needs {len(RESULT_COLUMNS)} cells, {', '.join(RESULT_COLUMNS)}")
        found.append(recorded)
    return sorted(found, key=lambda recorded: recorded.place)


def readme_results(results: Sequence[Recorded]) -> str:
    """The README's table, and a numbered note for each run."""
    cells, notes = [], []
    for number, run in enumerate(results, start=1):
        labels = [f"{run.network} ({number})"] + [""] * (len(run.rows) - 1)
        cells += [(label, *row) for label, row in zip(labels, run.rows, strict=True)]
        about = f"seed {run.seed}, {run.hardware}, {run.versions}, {run.date}"
        notes.append(f"{number}. `{run.command}`: {run.note} ({about})")
    return "\n".join([markdown(("network, data", *RESULT_COLUMNS), cells), "", *notes])
