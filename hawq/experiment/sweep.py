"""A multirun as a whole: all jobs checked before the first one starts, one table over them in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from hawq.experiment.config.build import check_config, config_keys
from hawq.experiment.config.explain import explain
from hawq.experiment.config.targets import check_hydra
from hawq.files import write_whole
from hawq.records import RunReport, from_dict
from hawq.report import RESULT_COLUMNS, markdown, result_cells


class SweepTable(Callback):
    """Checks the values of all jobs before the first one starts, and collects their reports in `table.md`."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, Path]] = []
        self._folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses the whole sweep where one of its jobs could not start."""
        self._folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")))
        for overrides in _overrides_of_jobs(config):
            try:
                job = compose(config.hydra.job.config_name, overrides=overrides, return_hydra_config=True)
                check_hydra(job, overrides)
                check_config(job, overrides)
            except (ValueError, FileNotFoundError, HydraException) as error:
                text = explain(error, config_keys()) if isinstance(error, HydraException) else error
                raise SystemExit(f"error: job {' '.join(overrides)}: {text}") from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Rewrites the table after each job, so that a stopped sweep has the table of what it finished."""
        if self._folder is None or job_return.status is not JobStatus.COMPLETED:
            return
        folder = Path(job_return.hydra_cfg.hydra.runtime.output_dir)  # type: ignore[union-attr]
        if (folder / "report.json").is_file():
            self._jobs.append((" ".join(job_return.overrides or []), folder))
            write_whole(self._folder / "table.md", (jobs_table(self._jobs) + "\n").encode())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table, and where it is."""
        if self._jobs and self._folder is not None:
            print(f"\n{jobs_table(self._jobs)}\n\nTable of all jobs: {self._folder / 'table.md'}")


def _overrides_of_jobs(config: DictConfig) -> list[list[str]]:
    """The command line of every job of Hydra's own sweeper; another sweeper makes its jobs up as it goes."""
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return []
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return [overrides for batch in BasicSweeper.split_arguments(given, None) for overrides in batch]


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
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): give a folder that a finished run wrote") from error
    if isinstance(data, dict):
        data.pop("schema", None)
    return from_dict(data, RunReport)
