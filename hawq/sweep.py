"""The end of a multirun: one table over all its jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from hawq.files import write_whole
from hawq.records import RunReport, from_dict
from hawq.report import RESULT_COLUMNS, markdown, result_cells


class SweepTable(Callback):
    """Collects the report of every finished job, then prints and writes `table.md`."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, Path]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.COMPLETED and job_return.overrides is not None:
            folder = Path(job_return.hydra_cfg.hydra.runtime.output_dir)  # type: ignore[union-attr]
            self._jobs.append((" ".join(job_return.overrides), folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        table = jobs_table([(label, folder) for label, folder in self._jobs if (folder / "report.json").is_file()])
        folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")))
        path = write_whole(folder / "table.md", (table + "\n").encode())
        print(f"\n{table}\n\nTable of all jobs: {path}")


def jobs_table(jobs: Sequence[tuple[str, Path]]) -> str:
    """One row for each network of each job; `jobs` are (label, run folder) pairs.

    Raises FileNotFoundError or ValueError for a folder without a readable report.json.
    """
    rows = []
    for label, folder in jobs:
        for index, row in enumerate(read_report(folder).rows):
            rows.append((label if index == 0 else "", *result_cells(row)))
    return markdown(("job", *RESULT_COLUMNS), rows)


def read_report(folder: Path) -> RunReport:
    """The report of a run folder. Raises FileNotFoundError or ValueError with one sentence."""
    path = folder / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that a finished run wrote")
    data = json.loads(path.read_text())
    data.pop("schema", None)
    return from_dict(data, RunReport)
