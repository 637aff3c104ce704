"""Finished runs as records hold them, from their folders or from records."""

from __future__ import annotations

from pathlib import Path

from hawq.experiment.sweep import read_report
from hawq.records import RunReport
from hawq.report import RecordedRun, read_result, recorded_rows


def recorded_run(folder: Path, report: RunReport) -> RecordedRun:
    """A finished run as records hold it, without its packed file."""
    return RecordedRun(
        seed=report.config["seed"],
        hours=round(sum(stage.seconds for stage in report.stages) / 3600, 3),
        git_commit=report.git_commit,
        rows=recorded_rows(folder, report),
    )


def read_runs(path: Path) -> tuple[tuple[RecordedRun, ...], int | None]:
    """The runs of a run folder or a record, one per seed, and how many test images their curves are of (None: all).

    Raises ValueError or OSError for a path that is neither.
    """
    if path.is_dir():
        report = read_report(path)
        return (recorded_run(path, report),), report.config["finetune"]["eval_samples"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give run folders or records of docs/results")
    recorded = read_result(path)
    return recorded.runs, recorded.curve_images
