"""What a whole run found, and what is needed to find it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hawq.records.blocks import FloatPart
from hawq.records.kinds import Amount, Count, Number
from hawq.records.plans import BitPlan


@dataclass(frozen=True)
class Measured:
    """Accuracy in percent on `num_images` test images; `wrong` are the indices of those that got another label, and
    `chosen` the class that each of them got.

    Files of earlier versions hold the accuracy alone, or no `chosen`.
    """

    accuracy: Amount
    num_images: Count | None = None
    wrong: tuple[Count, ...] | None = None
    chosen: tuple[Count, ...] | None = None


@dataclass(frozen=True)
class Difference:
    """Accuracy of one network minus that of another on the same images, in points, with its 95 % interval."""

    value: Number
    low: Number
    high: Number
    num_images: Count

    @property
    def is_within_error(self) -> bool:
        """Whether the interval holds zero: these images do not show which network is better."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class ResultRow:
    """One line of the results table, in the papers' columns. `accuracy` is in percent, sizes are bytes on disk.

    `num_images` were tested; `difference` is that to the float network on the same images, and `agreement` the share of
    them in percent that both networks put into the same class, right or wrong. All are None in reports of earlier
    versions, and the last two for the float network.
    """

    method: str
    weight_bits: str
    activation_bits: str
    accuracy: float
    w_comp: float
    size_bytes: int
    a_comp: float | None
    paper_size_mib: float
    num_images: int | None = None
    difference: Difference | None = None
    agreement: float | None = None


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
    """Everything a run found, and what is needed to find it again: config, versions, commit, command, artifact keys.

    `over_baseline` is the accuracy of the plan's network minus that of the uniform baseline; None without one.
    """

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
    over_baseline: Difference | None = None
