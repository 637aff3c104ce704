"""Tables and figures."""

from hawq.report.figures import convergence_figure, finetuning_figure, frontier_figure, sensitivity_figure
from hawq.report.papers import NOT_RUN, Ours, PaperRow, PaperTable, comparison, read_table
from hawq.report.provenance import git_commit, hardware, versions
from hawq.report.results import (
    Recorded,
    RecordedRow,
    RecordedRun,
    read_result,
    read_results,
    readme_results,
    recorded_accuracy,
    recorded_rows,
    write_result,
)
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
    "RecordedRow",
    "RecordedRun",
    "comparison",
    "convergence_figure",
    "finetuning_figure",
    "frontier_figure",
    "git_commit",
    "hardware",
    "limits_table",
    "markdown",
    "plans_table",
    "read_result",
    "read_results",
    "read_table",
    "readme_results",
    "recorded_accuracy",
    "recorded_rows",
    "result_cells",
    "result_row",
    "results_table",
    "sensitivity_figure",
    "sensitivity_rows",
    "size_label",
    "versions",
    "write_result",
]
