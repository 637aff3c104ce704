"""Tables and figures."""

from hawq.report.figures import finetuning_figure, frontier_figure, sensitivity_figure
from hawq.report.provenance import git_commit, versions
from hawq.report.tables import (
    RESULT_COLUMNS,
    bits_label,
    limits_table,
    markdown,
    plans_table,
    result_cells,
    results_table,
    sensitivity_rows,
    size_label,
)

__all__ = [
    "RESULT_COLUMNS",
    "bits_label",
    "finetuning_figure",
    "frontier_figure",
    "git_commit",
    "limits_table",
    "markdown",
    "plans_table",
    "result_cells",
    "results_table",
    "sensitivity_figure",
    "sensitivity_rows",
    "size_label",
    "versions",
]
