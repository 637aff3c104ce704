"""Tables and figures."""

from hawq.report.figures import finetuning_figure, frontier_figure, sensitivity_figure
from hawq.report.papers import NOT_RUN, Ours, PaperRow, PaperTable, comparison, read_table
from hawq.report.provenance import git_commit, versions
from hawq.report.results import Recorded, read_results, readme_results
from hawq.report.tables import (
    RESULT_COLUMNS,
    limits_table,
    markdown,
    plans_table,
    result_cells,
    result_row,
    results_table,
    sensitivity_rows,
    size_label,
)

__all__ = [
    "NOT_RUN",
    "RESULT_COLUMNS",
    "Ours",
    "PaperRow",
    "PaperTable",
    "Recorded",
    "comparison",
    "finetuning_figure",
    "frontier_figure",
    "git_commit",
    "limits_table",
    "markdown",
    "plans_table",
    "read_results",
    "read_table",
    "readme_results",
    "result_cells",
    "result_row",
    "results_table",
    "sensitivity_figure",
    "sensitivity_rows",
    "size_label",
    "versions",
]
