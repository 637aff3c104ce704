"""What a whole run found, and what is needed to find it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hawq.records.blocks import FloatPart
from hawq.records.plans import BitPlan


@dataclass(frozen=True)
class ResultRow:
    """One line of the results table, in the papers' columns. `accuracy` is in percent, sizes are bytes on disk."""

    method: str
    weight_bits: str
    activation_bits: str
    accuracy: float
    w_comp: float
    size_bytes: int
    a_comp: float | None
    paper_size_mib: float


@dataclass(frozen=True)
class StageRecord:
    """Provenance of one stage: the key of its artifact, and the time and memory that making it took."""

    stage: str
    key: str
    reused: bool
    seconds: float
    peak_memory_mib: float | None


@dataclass(frozen=True)
class RunReport:
    """Everything a run found, and what is needed to find it again: config, versions, commit, command, artifact keys."""

    rows: tuple[ResultRow, ...]
    stages: tuple[StageRecord, ...]
    plan: BitPlan
    config: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    command: str
    seconds: float
    paths: dict[str, str] = field(default_factory=dict)
    float_parts: tuple[FloatPart, ...] = ()
