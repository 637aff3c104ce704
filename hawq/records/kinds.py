"""What the fields of records may hold when they are read from a file."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

FLOAT_BITS = 32
BIT_WIDTHS = tuple(range(1, 9))  # of quantised weights and activations
IMAGE_BITS = 8  # the network's input is an 8-bit image, whatever the first block's activation bits are
_MOST_LETTERS = 250


class WrongEntry(ValueError):
    """A value that its field does not allow. The message follows the path of the entry.

    Args:
        value: what was given.
        allowed: what to give instead.
    """

    def __init__(self, value: object, allowed: str) -> None:
        large = isinstance(value, int) and abs(value) >= 10**20
        super().__init__(
            f"={'a number of more than 20 digits' if large else repr_of(value)} is not allowed (give {allowed})"
        )


def repr_of(value: object) -> str:
    """The value as Python writes it, cut where that would be long."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 60
    text = shown.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Between:
    """Numbers within bounds that belong to the range."""

    least: float
    most: float

    def check(self, value: Any) -> None:
        """Raises WrongEntry for a number outside."""
        if not self.least <= value <= self.most:
            raise WrongEntry(value, f"{self.least:g} to {self.most:g}")


@dataclass(frozen=True)
class OneOf:
    """A few whole numbers."""

    allowed: tuple[int, ...]

    def check(self, value: Any) -> None:
        """Raises WrongEntry for any other."""
        if value not in self.allowed:
            raise WrongEntry(value, ", ".join(map(str, self.allowed)))


@dataclass(frozen=True)
class SpelledBits:
    """Bit-widths as keys of a JSON mapping, "4" say."""

    def read(self, key: Any) -> int:
        """The bit-width. Raises WrongEntry for anything but 1 … 8."""
        if key not in {str(bits) for bits in BIT_WIDTHS} and (key not in BIT_WIDTHS or isinstance(key, bool)):
            raise WrongEntry(key, f"bit-widths from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} as keys")
        return int(key)


@dataclass(frozen=True)
class Named:
    """Text that is not empty, not endless, and stays on one line."""

    def check(self, value: Any) -> None:
        """Raises WrongEntry for other text."""
        if not value.strip() or len(value) > _MOST_LETTERS or not value.isprintable():
            raise WrongEntry(value, f"1 to {_MOST_LETTERS} printable characters")


@dataclass(frozen=True)
class SpelledPair:
    """Bit-widths as text: "4" for weights, "4/8" for weights and activations."""

    def check(self, value: Any) -> None:
        """Raises WrongEntry for other text."""
        known = {str(bits) for bits in (*BIT_WIDTHS, FLOAT_BITS)}
        if not 1 <= len(value.split("/")) <= 2 or not set(value.split("/")) <= known:
            raise WrongEntry(value, f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} or {FLOAT_BITS}, or two of them as 4/8")


Name = Annotated[str, Named()]
Count = Annotated[int, Between(0, 1e15)]
Operations = Annotated[int, Between(0, 1e20)]
PositiveCount = Annotated[int, Between(1, 1e12)]
Number = Annotated[float, Between(-1e60, 1e60)]
Amount = Annotated[float, Between(0, 1e60)]
Product = Annotated[float, Between(-1e125, 1e125)]  # of two numbers
Spread = Annotated[float, Between(0, 1e125)]
Share = Annotated[float, Between(0, 1)]
CodeBits = Annotated[int, OneOf(BIT_WIDTHS)]
BitsPair = Annotated[str, SpelledPair()]
Milliseconds = Annotated[float, Between(0, 1e9)]
BitsKey = Annotated[int, SpelledBits()]
Bits = Annotated[int, OneOf((*BIT_WIDTHS, FLOAT_BITS))]


def strict_int(value: Any, _: Any = int) -> int:
    """A whole number as JSON writes it. Raises WrongEntry for anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongEntry(value, "a whole number")
    return value


def strict_float(value: Any, _: Any = float) -> float:
    """A finite number. Raises WrongEntry for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise WrongEntry(value, "a number")
    if abs(value) > 1e308 or not isfinite(value):
        raise WrongEntry(value, "a finite number")
    return float(value)


def strict_bool(value: Any, _: Any = bool) -> bool:
    """True or false. Raises WrongEntry for anything else."""
    if not isinstance(value, bool):
        raise WrongEntry(value, "true or false")
    return value


def strict_text(value: Any, _: Any = str) -> str:
    """Text. Raises WrongEntry for anything else."""
    if not isinstance(value, str):
        raise WrongEntry(value, "text")
    return value
