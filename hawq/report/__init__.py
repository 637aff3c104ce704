"""Tables, figures and recorded results."""

from hawq.report.answers import headline
from hawq.report.figures import (
    convergence_figure,
    finetuning_figure,
    frontier_figure,
    sensitivity_figure,
    validation_figure,
)
from hawq.report.intervals import agreement, paired_difference, wilson
from hawq.report.league import write_table
from hawq.report.lines import Entry
from hawq.report.page import write_page
from hawq.report.papers import NOT_RUN, Ours, PaperRow, PaperTable, comparison, read_table
from hawq.report.provenance import git_commit, hardware, versions
from hawq.report.results import (
    Recorded,
    RecordedRow,
    RecordedRun,
    full_results,
    read_result,
    read_results,
    record_of,
    recorded_accuracy,
    recorded_rows,
    summary_table,
    write_result,
)
from hawq.report.run_folder import RunFolder, read_run
from hawq.report.tables import (
    RESULT_COLUMNS,
    limits_table,
    markdown,
    plan_cells,
    plans_table,
    result_cells,
    result_row,
    results_table,
    score_cost,
    sensitivity_rows,
    sensitivity_table,
    size_label,
    validation_rows,
    validation_table,
)
from hawq.report.validated_plans import plans_figure, validated_plans_rows, validated_plans_table, verdict
from hawq.report.wording import number

__all__ = [
    "NOT_RUN",
    "RESULT_COLUMNS",
    "Entry",
    "Ours",
    "PaperRow",
    "PaperTable",
    "Recorded",
    "RecordedRow",
    "RecordedRun",
    "RunFolder",
    "agreement",
    "comparison",
    "convergence_figure",
    "finetuning_figure",
    "frontier_figure",
    "full_results",
    "git_commit",
    "hardware",
    "headline",
    "limits_table",
    "markdown",
    "number",
    "paired_difference",
    "plan_cells",
    "plans_figure",
    "plans_table",
    "read_result",
    "read_results",
    "read_run",
    "read_table",
    "record_of",
    "recorded_accuracy",
    "recorded_rows",
    "result_cells",
    "result_row",
    "results_table",
    "score_cost",
    "sensitivity_figure",
    "sensitivity_rows",
    "sensitivity_table",
    "size_label",
    "summary_table",
    "validated_plans_rows",
    "validated_plans_table",
    "validation_figure",
    "validation_rows",
    "validation_table",
    "verdict",
    "versions",
    "wilson",
    "write_page",
    "write_result",
    "write_table",
]
