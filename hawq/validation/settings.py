"""How the scores are validated."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.checks import check_range
from hawq.components import component
from hawq.records import BIT_WIDTHS

_MOST = {"num_samples": 10**9, "batch_size": 10**6, "draws": 20_000, "save_every_seconds": 10**6}


@component("validate/validation", not_in_key=("batch_size", "save_every_seconds", "solvers", "draws"))
@dataclass(frozen=True)
class Validation:
    """How the scores are validated.

    Args:
        num_samples: held-out images, drawn once by the run's seed; at most those that are there.
        batch_size: images in one forward pass.
        bit_widths: at which each block is quantised alone.
        solvers: options of conf/solver whose scores are compared; the run's own one keeps the values it was given.
        draws: of the bootstrap over blocks that the intervals come from, at most 20,000.
        save_every_seconds: how often partial results are stored, so that a killed run can be resumed.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int
    batch_size: int
    bit_widths: tuple[int, ...]
    solvers: tuple[str, ...]
    draws: int
    save_every_seconds: float

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 2), ("batch_size", 1), ("draws", 1), ("save_every_seconds", 0)):
            check_range(name, getattr(self, name), least=least, most=_MOST[name])
        for name in ("bit_widths", "solvers"):
            given = list(getattr(self, name))
            if len(set(given)) < max(len(given), 1):
                raise ValueError(f"{name}={given} is out of range: give at least one, none twice")
        if not set(self.bit_widths) <= set(BIT_WIDTHS):
            raise ValueError(f"bit_widths={list(self.bit_widths)} is out of range: give some of {list(BIT_WIDTHS)}")
