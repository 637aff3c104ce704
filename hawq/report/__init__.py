"""Tables and figures."""

from hawq.report.figures import finetuning_figure, frontier_figure, sensitivity_figure, validation_figure
from hawq.report.papers import NOT_RUN, Ours, PaperRow, PaperTable, comparison, read_table
from hawq.report.provenance import git_commit, versions
from hawq.report.results import Recorded, read_results, readme_results
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
    validation_rows,
    validation_table,
)

__all__ = [
    "NOT_RUN",
    "RESULT_COLUMNS",
    "Ours",
    "PaperRow",
    "PaperTable",
    "Recorded",
    "bits_label",
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
    "results_table",
    "sensitivity_figure",
    "sensitivity_rows",
    "size_label",
    "validation_figure",
    "validation_rows",
    "validation_table",
    "versions",
]
