"""The papers' tables (docs/papers/*.yaml), printed next to our own costs and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from hawq.records import Cost, from_dict
from hawq.report.tables import markdown

_FIGURES = {"accuracy": "accuracy %", "w_comp": "W-Comp", "a_comp": "A-Comp", "size_mb": "size MB", "bops_g": "BOPS G"}
NOT_RUN = "not run here"


@dataclass(frozen=True)
class PaperRow:
    """One printed row.

    Args:
        id: by which it is run.
        method, weights, activations: as printed.
        mark: the source: PDF, REPO, ABS, SEC, CALC, RECALLED; NONE where nothing is printed.
        accuracy, w_comp, a_comp, size_mb, bops_g: the printed figures, in percent, ratios, MB and 10⁹.
        recalled: figures that were quoted from memory.
        overrides: what `train.py` is given to run it; None for systems that are not implemented here.
        layer_bits: published bit-widths of all layers but the first and the last, which have 8.
        note: for the reader.
        against: the row that its accuracy is compared with, seed by seed.
    """

    id: str
    method: str
    weights: str
    activations: str
    mark: str
    accuracy: float | None = None
    w_comp: float | None = None
    a_comp: float | None = None
    size_mb: float | None = None
    bops_g: float | None = None
    recalled: tuple[str, ...] = ()
    overrides: tuple[str, ...] | None = None
    layer_bits: str | None = None
    note: str = ""
    against: str | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper; `experiment` is the option of conf/experiment on which its rows build.

    Raises ValueError for a row that is compared with one that is not there.
    """

    title: str
    experiment: str
    num_classes: int
    rows: tuple[PaperRow, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.against is not None:
                self.row(row.against)

    def row(self, name: str) -> PaperRow:
        """The row with this id. Raises ValueError, with all ids, for an unknown one."""
        rows = {row.id: row for row in self.rows}
        if name not in rows:
            raise ValueError(f"row {name!r} is unknown: give {', '.join(rows)}")
        return rows[name]

    def overrides(self, row: PaperRow) -> list[str] | None:
        """What `train.py` is given to run a row; None where that is not possible."""
        return None if row.overrides is None else [f"experiment={self.experiment}", *row.overrides]


@dataclass(frozen=True)
class Ours:
    """What this code has for a row: its cost, or the limit that the allocation is given; and what was recorded."""

    cost: Cost | None = None
    size_mib: float | None = None
    limit: str | None = None
    accuracy: str = NOT_RUN
    difference: str = "–"


def read_table(path: Path) -> PaperTable:
    """The table in a YAML file. Raises ValueError naming what is wrong in it."""
    return from_dict(yaml.safe_load(path.read_text()), PaperTable)


def comparison(table: PaperTable, ours: Mapping[str, Ours]) -> str:
    """Each row with the paper's figures next to ours (row id → ours), for each figure that the table prints.

    Recalled figures are marked. A table without printed figures, such as that of our own ablations, shows only our
    accuracy and W-Comp. Rows that are compared with another have their paired difference.
    """
    figures = [name for name in _FIGURES if any(getattr(row, name) is not None for row in table.rows)]
    columns = ["row", "method", "w-bits", "a-bits"]
    for name in figures:
        columns += [_FIGURES[name], "ours"]
    alone = [] if figures else ["accuracy", "w_comp"]
    columns += [_FIGURES[name] for name in alone]
    compared = any(row.against for row in table.rows)
    columns += ["difference, 95 %"] if compared else []
    cells = []
    for row in table.rows:
        line = [row.id, row.method, row.weights, row.activations]
        for name in figures:
            line += [_printed(row, name), _own(ours[row.id], name)]
        line += [_own(ours[row.id], name) for name in alone]
        line += [ours[row.id].difference] if compared else []
        cells.append([*line, row.mark, row.note] if figures else [*line, row.note])
    return f"{table.title}\n\n{markdown([*columns, *(['source'] if figures else []), 'note'], cells)}"


def _printed(row: PaperRow, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return "–"
    return f"{value:g} (recalled)" if name in row.recalled else f"{value:g}"


def _own(ours: Ours, name: str) -> str:
    if name == "accuracy":
        return ours.accuracy
    if ours.cost is None:
        return ours.limit if ours.limit and name == "w_comp" else "–"
    values = {
        "w_comp": ours.cost.w_comp,
        "a_comp": ours.cost.a_comp,
        "size_mb": ours.size_mib,
        "bops_g": None if ours.cost.bops is None else ours.cost.bops / 1e9,
    }
    value = values[name]
    return "–" if value is None else f"{value:.4g}"
