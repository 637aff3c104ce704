"""Checks of settings, each told in one sentence: what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any


def check_range(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite number within the bounds that are given.

    Args:
        name: the setting as its owner calls it, without the section of the config it may stand in.
        value: what was given; None passes where `optional`.
        least, most: bounds that belong to the range.
        above, below: bounds that do not.
    """
    if value is None and optional:
        return
    inside = (
        value is not None
        and isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside:
        null = ", or null" if optional else ""
        raise ValueError(f"{name}={value} is out of range: give {_range(least, above, most, below)}{null}")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: give {_listed(allowed)}")


def _range(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """The allowed numbers in words."""
    if least is not None and most is not None:
        return f"{least} to {most}"
    lower = f"{least} or more" if least is not None else f"more than {above}" if above is not None else ""
    upper = f"at most {most}" if most is not None else f"less than {below}" if below is not None else ""
    return " and ".join(part for part in (lower, upper) if part) or "a finite number"


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) == 2 else ", ".join(names)
