"""A run at work: its settings, its inputs, and where what it finds goes."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.metrics import MetricsLog
from hawq.experiment.progress import Console
from hawq.experiment.table import wanted_stages
from hawq.progress import Progress
from hawq.records import StageRecord


@dataclass(frozen=True)
class Run:
    """What every stage is given beside the results it needs.

    Args:
        settings: what was asked for.
        inputs: data and network; every stage but the allocation works on them.
        log: metrics, tables and figures of this run.
        records: provenance of every stage, in the order in which they are done.
        started: seconds of the monotonic clock.
    """

    settings: Settings
    inputs: Inputs
    log: MetricsLog
    records: list[StageRecord] = field(default_factory=list)
    progress: Progress = field(default_factory=Console)
    started: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where everything of this run lies."""
        return self.settings.folder

    def wants(self, stage: str) -> bool:
        """Whether a stage is part of this run."""
        return stage in [row.name for row in wanted_stages(self.settings.options.stages)]

    def with_settings(self, **changed: Any) -> Run:
        """The same run under other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changed))
