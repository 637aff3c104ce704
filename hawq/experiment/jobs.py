"""The jobs of a sweep on disk: which there are, which are finished, which failed. Processes share nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawq.experiment.artifacts import fingerprint, write_json

DONE, FAILED, JOBS = "done.json", "failed.json", "jobs.json"
FINISHED, BROKEN, OPEN = "finished", "failed", "not finished"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        label: its overrides, as typed.
        folder: its run folder.
        state: "finished", "failed" or "not finished".
        error: why it failed, in a sentence.
        command: that runs it alone; empty for one that was not planned.
    """

    label: str
    folder: Path
    state: str
    error: str = ""
    command: str = ""


def write_jobs(sweep: Path, jobs: Sequence[tuple[str, str, str]]) -> None:
    """Stores (label, folder name, command) of every job before the first one starts."""
    write_json(sweep / JOBS, {"schema": "hawq.jobs/1", "jobs": [list(job) for job in jobs]})


def read_jobs(sweep: Path) -> list[Job]:
    """All jobs of a sweep as they are by now: those that were planned, then whatever else ran there."""
    planned = {str(name): (str(label), *rest) for label, name, *rest in _read(sweep / JOBS).get("jobs", [])}
    found = [path.parent.name for name in (DONE, FAILED) for path in sweep.glob(f"*/{name}")]
    for name in sorted(set(found) - planned.keys()):
        planned[name] = (name,)
    return [_job(label, sweep / name, *map(str, rest)) for name, (label, *rest) in planned.items()]


def _job(label: str, folder: Path, command: str = "") -> Job:
    if (folder / FAILED).is_file():
        return Job(label, folder, BROKEN, str(_read(folder / FAILED).get("error", "")), command)
    return Job(label, folder, FINISHED if (folder / DONE).is_file() else OPEN, command=command)


def is_done(folder: Path, facts: Any) -> bool:
    """Whether a job with these facts (JSON-ready) was finished in this folder."""
    return _read(folder / DONE).get("facts") == _hash(facts) and not (folder / FAILED).exists()


def begin(folder: Path) -> None:
    """Forgets what an earlier process said of the job."""
    for name in (DONE, FAILED):
        (folder / name).unlink(missing_ok=True)


def finish(folder: Path, facts: Any) -> None:
    """Stores that a job with these facts is finished."""
    write_json(folder / DONE, {"schema": "hawq.done/1", "facts": _hash(facts)})


def fail(folder: Path, error: str) -> None:
    """Stores why a job failed."""
    write_json(folder / FAILED, {"schema": "hawq.failed/1", "error": error})


def _hash(facts: Any) -> str:
    return fingerprint(json.dumps(facts, sort_keys=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
