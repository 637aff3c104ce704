"""What a run folder holds, read for the page about it. Whatever is absent or of another version is None."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hawq.allocation import Frontier
from hawq.errors import UserError
from hawq.records import (
    PLAN_SCHEMA,
    BitPlan,
    Record,
    RunReport,
    Sensitivity,
    Validated,
    from_dict,
    read_record,
    read_sensitivity,
)


@dataclass(frozen=True)
class RunFolder:
    """The results of one run, as its files state them.

    Args:
        path: the folder.
        config: of `config.yaml`.
        command: that made it.
        sensitivity, plan, frontier, report, validation: None for a stage that did not run.
        direct: the plan of the uniform baseline.
        histories: method → rows of its fine-tuning.
        deployments: network ("" for the plan's own, "direct") → its deploy.json.
        landscape: of `landscape.json`.
    """

    path: Path
    config: dict[str, Any]
    command: str
    sensitivity: Sensitivity | None = None
    plan: BitPlan | None = None
    direct: BitPlan | None = None
    frontier: Frontier | None = None
    report: RunReport | None = None
    validation: Validated | None = None
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    landscape: dict[str, Any] | None = None

    def has(self, name: str) -> bool:
        """Whether the folder holds a file, to be linked to; the page's template asks."""
        return (self.path / name).is_file()


def read_run(folder: Path, command: str = "") -> RunFolder:
    """Everything that a run left in its folder; `command` stands in for that of a report that is not there."""
    report = _record(folder / "report.json", RunReport)
    plan = _read(lambda: read_record(folder / "plan.json", PLAN_SCHEMA, BitPlan))
    direct = _read(lambda: read_record(folder / "direct" / "plan.json", PLAN_SCHEMA, BitPlan))
    histories = {}
    for method, place in ((plan and plan.method, folder), (direct and direct.method, folder / "direct")):
        rows = _json(place / "finetune" / "history.json")
        if method and rows:
            histories[method] = rows
    deployments = {name: _json(folder / name / "deploy.json") for name in ("", "direct")}
    config = folder / "config.yaml"
    return RunFolder(
        path=folder,
        config=yaml.safe_load(config.read_text()) if config.is_file() else {},
        command=report.command if report else command,
        sensitivity=_read(lambda: read_sensitivity(folder / "sensitivity.json")),
        plan=plan,
        direct=direct,
        frontier=_record(folder / "frontier.json", Frontier),
        report=report,
        validation=_record(folder / "validation.json", Validated),
        histories=histories,
        deployments={name: found for name, found in deployments.items() if found},
        landscape=_json(folder / "landscape.json"),
    )


def _read(read: Any) -> Any:
    """What `read` returns, None for a file that is not there or of another version."""
    try:
        return read()
    except (UserError, OSError):
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError):
        return None


def _record(path: Path, kind: type[Record]) -> Record | None:
    """A record of whatever version of its schema has the same entries."""
    data = _json(path)
    if not isinstance(data, dict):
        return None
    data.pop("schema", None)
    try:
        return from_dict(data, kind)
    except ValueError:
        return None
