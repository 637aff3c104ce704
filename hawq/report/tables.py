"""Results as text tables, in the papers' columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hawq.records import BitPlan, ResultRow, Sensitivity

RESULT_COLUMNS = ("method", "w-bits", "a-bits", "accuracy %", "W-Comp", "size", "A-Comp")


def bits_label(bits: Sequence[int]) -> str:
    """The papers' notation: one width as it is, a mix as its lowest width and "MP"."""
    return str(bits[0]) if len(set(bits)) == 1 else f"{min(bits)} MP"


def size_label(size_bytes: int) -> str:
    """Bytes on disk in KiB or MiB."""
    return f"{size_bytes / 2**10:.1f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:.2f} MiB"


def result_cells(row: ResultRow) -> tuple[str, ...]:
    """One row of the results table, by `RESULT_COLUMNS`."""
    return (
        row.method,
        row.weight_bits,
        row.activation_bits,
        f"{row.accuracy:.2f}",
        f"{row.w_comp:.2f}×",
        size_label(row.size_bytes),
        "–" if row.a_comp is None else f"{row.a_comp:.2f}×",
    )


def results_table(rows: Sequence[ResultRow]) -> str:
    return markdown(RESULT_COLUMNS, [result_cells(row) for row in rows])


def sensitivity_rows(sensitivity: Sensitivity, plan: BitPlan | None) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: block, n_i, λ_i (or what stands for it), error and cost, S_i, and with a plan bits and Ω_i."""
    columns: tuple[str, ...] = ("block", "weights", "curvature", "error", "products", "gradients", "score")
    rows: list[tuple[Any, ...]] = [
        (
            row.block.name,
            row.block.num_weights,
            row.curvature.value,
            row.curvature.error,
            row.curvature.products,
            "–" if row.curvature.gradient_equivalents is None else row.curvature.gradient_equivalents,
            row.score,
        )
        for row in sensitivity.rows
    ]
    if plan is None:
        return columns, rows
    bits = plan.weight_bits()
    extra = [(bits[row.block.name], row.omega(bits[row.block.name])) for row in sensitivity.rows]
    return (*columns, "bits", "omega"), [(*row, *more) for row, more in zip(rows, extra, strict=True)]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that reads well as plain text and as Markdown."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
