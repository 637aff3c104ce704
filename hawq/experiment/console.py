"""What a person at a console reads: tables that fit its width, in colour at a terminal and as plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from shutil import get_terminal_size
from typing import Any

from hawq.experiment.jobs import BROKEN, FINISHED, Job
from hawq.experiment.progress import is_quiet
from hawq.report import markdown, number, plan_cells, read_run, result_cells

LESS = ("gradients", "products", "error", "a-bits", "score", "weights")
"""Columns of the sensitivities in the order in which a narrow console does without them."""

_WITHOUT_TERMINAL = 100  # columns, where neither a terminal nor COLUMNS says how many there are


def width() -> int:
    """Columns of the console."""
    return get_terminal_size((_WITHOUT_TERMINAL, 24)).columns


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], drop: Sequence[str] = (), title: str = "") -> str:
    """A table that is no wider than the console.

    Args:
        columns: their names.
        rows: cells; fractions are shown with three digits.
        drop: columns that are left out first, in this order, where not all fit; then from the right.
        title: a line above, for what a name cannot say.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    kept, most = list(range(len(columns))), width()
    waiting = [columns.index(name) for name in drop if name in columns]
    waiting += [place for place in reversed(range(1, len(columns))) if place not in waiting]
    while _needed(columns, cells, kept) > most and waiting:
        kept.remove(waiting.pop(0))
    shown = [columns[place] for place in kept], [[row[place] for place in kept] for row in cells]
    if len(kept) < len(columns):
        title = f"{title}{title and '; '}{len(columns) - len(kept)} more columns in the report"
    text = _coloured(*shown) if sys.stdout.isatty() else _cut(markdown(*shown), most)
    return f"{title}\n{text}" if title else text


def _text(cell: Any) -> str:
    return "–" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _needed(columns: Sequence[str], cells: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Columns of the console that these columns of the table take."""
    return 1 + sum(3 + max(len(columns[place]), *(len(row[place]) for row in cells), 0) for place in kept)


def _cut(text: str, most: int) -> str:
    """Lines that are still too long, with a mark where they end."""
    return "\n".join(line if len(line) <= most else f"{line[: most - 1]}…" for line in text.splitlines())


def _coloured(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in colour, numbers to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold cyan")
    for place, column in enumerate(columns):
        numeric = all(row[place][:1] in "0123456789-−+–" for row in rows if row[place])
        made.add_column(column, justify="right" if numeric and place else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell, style="bold" if not place else "") for place, cell in enumerate(row)))
    buffer = StringIO()
    Console(file=buffer, width=width(), force_terminal=True).print(made)
    return buffer.getvalue().rstrip("\n")


def jobs_summary(jobs: Sequence[Job]) -> str:
    """One line for each job of a sweep: what it was asked for, what came out; of a plan, what its score predicts."""
    rows: list[tuple[str, ...]] = []
    most, trained = max(20, width() - 50), True
    for job in jobs:
        label = job.label if len(job.label) <= most else f"{job.label[: most - 1]}…"
        run = read_run(job.folder) if job.state == FINISHED else None
        if run and run.report:
            cells = result_cells(run.report.rows[-1])
        elif run and run.plan:
            cells, trained = plan_cells(run.plan), False
        else:
            rows.append((label, job.state, *[""] * 4))
            continue
        predicted = number(run.plan.objective if run.plan else None)
        rows.append((label, cells[0], cells[3], cells[5], cells[4], predicted))
    columns: tuple[str, ...] = ("job", "method", "accuracy %", "size", "W-Comp", "predicted increase")
    if trained:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    elif all(row[2] in ("–", "") for row in rows):
        columns, rows = columns[:2] + columns[3:], [row[:2] + row[3:] for row in rows]
    text = table(columns, rows, drop=("W-Comp", "method"))
    broken = [f"failed: {job.label}: {job.error}" for job in jobs if job.state == BROKEN]
    return "\n".join([text, *broken])


@contextmanager
def last_line_alone() -> Iterator[None]:
    """With --quiet, nothing but the last line of what is printed inside; otherwise all of it."""
    if not is_quiet():
        yield
        return
    said = StringIO()
    with redirect_stdout(said):
        yield
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    if lines:
        print(lines[-1])
