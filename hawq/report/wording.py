"""Numbers and sizes as a reader wants them."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where a few digits say the same."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}".replace("-", "−")
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", "−")
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa}·10{_raised(int(power))}".replace("-", "−")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def count(value: int) -> str:
    """A whole number with separators; millions and more in short."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(value) >= 10 * size:
            return f"{value / size:.1f} {letter}"
    return f"{value:,}"


def plural(value: int, word: str) -> str:
    """A count with its word: 1 bit, 2 bits."""
    return f"{value} {word}{'' if value == 1 else 's'}"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign."""
    text = f"{value:+.{digits}f}"
    return "±" + text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def percent(value: float) -> str:
    """A percentage with two decimals, which a line does not break."""
    return f"{value:.2f}\N{NO-BREAK SPACE}%"


def seconds(value: float) -> str:
    """A duration."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
