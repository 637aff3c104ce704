"""A multirun as a whole: all jobs checked before the first one starts, one table over them in the end."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hawq.experiment.artifacts import locked
from hawq.experiment.config.build import check_config, config_keys
from hawq.experiment.config.explain import explain
from hawq.experiment.config.names import run_name
from hawq.experiment.config.targets import check_hydra
from hawq.experiment.console import jobs_summary
from hawq.experiment.jobs import FINISHED, OPEN, Job, fail, read_jobs, write_jobs
from hawq.experiment.progress import is_quiet, speaks
from hawq.files import write_whole
from hawq.records import RunReport, from_dict
from hawq.report import RESULT_COLUMNS, Entry, markdown, number, plan_cells, read_run, result_cells, write_table

_RESULTS = ("report.json", "plan.json")
_LOCAL = ".LocalLauncher"  # Submitit's, on this machine
_LOST = ("UncompletedJobError", "TerminatedWorkerError")  # of submitit, of joblib


class SweepTable(Callback):
    """Checks the values of all jobs before the first one starts, and shows their results in `table.html`, `table.md`.

    Jobs may run in other processes; what they found is read from disk.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses the whole sweep where one of its jobs could not start; settles the sweep's folder for all jobs."""
        sweep = _settled_folder(config)
        jobs: list[tuple[list[str], str]] = []
        for overrides in _overrides_of_jobs(config):
            try:
                job = compose(config.hydra.job.config_name, overrides=overrides, return_hydra_config=True)
                check_hydra(job, overrides)
                check_config(job, overrides)
            except (ValueError, FileNotFoundError, HydraException) as error:
                text = explain(error, config_keys()) if isinstance(error, HydraException) else error
                raise SystemExit(f"error: job {' '.join(overrides)}: {text}") from error
            jobs.append((overrides, run_name(job)))
        common = set.intersection(*(set(overrides) for overrides, _ in jobs)) if len(jobs) > 1 else set()
        labels = [" ".join(word for word in overrides if word not in common) for overrides, _ in jobs]
        if str(config.hydra.launcher._target_).endswith(_LOCAL):
            _share_cores(len(jobs))
        commands = [shlex.join(["python", "train.py", *overrides]) for overrides, _ in jobs]
        names = [name for _, name in jobs]
        write_jobs(sweep, list(zip(labels, names, commands, strict=True)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Rewrites the tables after each job, so that a stopped sweep has those of what it finished."""
        if not OmegaConf.is_missing(config.hydra.job, "num") and speaks():
            write_tables(Path(str(config.hydra.sweep.dir)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the results, and where the tables are. Raises SystemExit when a job failed."""
        if speaks():
            conclude(Path(str(config.hydra.sweep.dir)))


def conclude(sweep: Path) -> None:
    """Prints the results, and where the tables are. Raises SystemExit when a job failed."""
    jobs = write_tables(sweep)
    if not is_quiet():
        print("\n" + jobs_summary(jobs) + "\n")
    print(f"Table of all jobs: {sweep / 'table.html'}")
    failed = [job for job in jobs if job.state != FINISHED]
    if failed:
        count = f"{len(failed)} of {len(jobs)} jobs failed"
        first = f"{failed[0].label}: {failed[0].error or failed[0].state}"
        raise SystemExit(f"error: {count}, first {first}; the same command runs these alone")


def is_lost_process(error: BaseException) -> bool:
    """Whether a launcher raises this when the process of a job was killed, by the system for its memory, say."""
    return type(error).__name__ in _LOST


def conclude_without(sweep: Path, launcher: str) -> None:
    """`conclude` for a sweep whose launcher has lost a process and gave up.

    Submitit's jobs on this machine go on without it: they are waited for, and one that ended without a word is marked
    as failed. Joblib has stopped all its processes by now, and a cluster's jobs are not ours to wait for.

    Args:
        sweep: folder of the sweep.
        launcher: the `_target_` of its launcher.
    """
    if launcher.endswith(_LOCAL):
        for folder in (sweep / ".submitit").glob("[0-9]*"):
            with suppress(ChildProcessError):  # an earlier one, or one that was seen to end
                os.waitpid(int(folder.name), 0)
        for job in read_jobs(sweep):
            if job.state == OPEN:
                job.folder.mkdir(parents=True, exist_ok=True)
                fail(job.folder, "its process was killed, as happens where memory runs out")
    conclude(sweep)


def _share_cores(jobs: int) -> None:
    """Gives each of several processes that start at once its share of the cores, unless the environment says otherwise.

    PyTorch would take all cores in each of them, and all would wait for each other. (Joblib does the same by itself.)
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, jobs))))


def _settled_folder(config: DictConfig) -> Path:
    """The folder of the sweep, fixed as an absolute path in what every job's config is composed of.

    Its name comes from this process' command line; those of the jobs' processes are other ones.
    """
    sweep = Path(str(OmegaConf.select(config, "hydra.sweep.dir"))).absolute()
    quoted = str(sweep).replace("\\", "\\\\").replace("'", "\\'")
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(sweep)
        given = [text for text in config.hydra.overrides.hydra if not str(text).startswith("hydra.sweep.dir=")]
        config.hydra.overrides.hydra = [*given, f"hydra.sweep.dir='{quoted}'"]
    return sweep


def write_tables(sweep: Path) -> list[Job]:
    """`table.html` and `table.md` of a sweep's jobs as they are by now; returns the jobs."""
    with locked(sweep / ".lock"):
        jobs = read_jobs(sweep)
        ended = [(job.label, job.folder) for job in jobs if any((job.folder / name).is_file() for name in _RESULTS)]
        write_whole(sweep / "table.md", (jobs_table(ended) + "\n").encode())
        write_table(sweep / "table.html", [entry(job) for job in jobs], f"Sweep {sweep.name}")
    return jobs


def entry(job: Job) -> Entry:
    """A job as a line of the table."""
    return Entry(job.label, job.folder, job.state, job.error, job.command)


def _overrides_of_jobs(config: DictConfig) -> list[list[str]]:
    """The command line of every job of Hydra's own sweeper; another sweeper makes its jobs up as it goes."""
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return []
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return [overrides for batch in BasicSweeper.split_arguments(given, None) for overrides in batch]


def jobs_table(jobs: Sequence[tuple[str, Path]]) -> str:
    """One row for each network of each job; `jobs` are (label, run folder) pairs.

    A job that made a plan and did not train it is shown by the increase of the loss that its score predicts. Raises
    FileNotFoundError or ValueError for a folder with neither a readable report.json nor a plan.
    """
    rows = []
    for label, folder in jobs:
        plan = read_run(folder).plan
        if plan and not (folder / "report.json").is_file():
            cells = [plan_cells(plan)]
        else:
            cells = [result_cells(row) for row in read_report(folder).rows]
        predicted = ["–"] * (len(cells) - 1) + [number(plan.objective if plan else None)]
        rows += [
            (label if index == 0 else "", *row, more)
            for index, (row, more) in enumerate(zip(cells, predicted, strict=True))
        ]
    columns = ("job", *RESULT_COLUMNS, "predicted increase")
    trained = all((folder / "report.json").is_file() for _, folder in jobs)
    return markdown(columns[:-1], [row[:-1] for row in rows]) if trained else markdown(columns, rows)


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
