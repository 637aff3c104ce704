"""Integers with a step, and the dyadic change of that step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FINER = 2.0**-8  # residual step / step of the coarser summand: the prototype lost nothing visible at it


@dataclass(frozen=True)
class Codes:
    """Stored integers, and the ends of their grid."""

    values: np.ndarray
    low: int
    high: int

    def clipped(self, low: int, high: int) -> Codes:
        """Those of a narrower grid."""
        return Codes(np.clip(self.values, low, high), max(self.low, low), min(self.high, high))


@dataclass(frozen=True)
class Integers:
    """A tensor value = values · step.

    Args:
        values: int64.
        step: float64, a scalar or broadcastable against `values` (one per channel).
        low, high: what no value of any input exceeds.
    """

    values: np.ndarray
    step: np.ndarray
    low: int
    high: int

    def clamped(self, least: int) -> Integers:
        """max(x, least)."""
        return Integers(np.maximum(self.values, least), self.step, max(self.low, least), max(self.high, least))

    def shifted(self, by: np.ndarray) -> Integers:
        """x + by, of the same step."""
        return Integers(self.values + by, self.step, self.low + int(by.min()), self.high + int(by.max()))


def dyadic(ratio: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(b, c) with b/2^c nearest to each ratio, |b| < 2^bits (HAWQ-V3, 2011.10680, eq. 5)."""
    fraction, exponent = np.frexp(np.asarray(ratio, np.float64))  # ratio = fraction · 2^exponent, ½ ≤ |fraction| < 1
    numerator = np.rint(np.ldexp(fraction, bits)).astype(np.int64)
    return numerator, bits - exponent.astype(np.int64)


def rescaled(x: Integers, step: float, bits: int) -> Integers:
    """x in another step: (x · b + 2^(c−1)) >> c, with b/2^c ≈ x.step/step; rounds half up."""
    numerator, shift = dyadic(x.step / step, bits)
    return Integers(
        _shifted(x.values, numerator, shift),
        np.array(step),
        int(np.min(_shifted(np.array(x.low), numerator, shift))),
        int(np.max(_shifted(np.array(x.high), numerator, shift))),
    )


def _shifted(values: np.ndarray, numerator: np.ndarray, shift: np.ndarray) -> np.ndarray:
    right, left = np.clip(shift, 0, 62), np.clip(-shift, 0, 62)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
    result: np.ndarray = (((values * numerator) << left) + half) >> right
    return result


def common_step(*parts: Integers) -> float:
    """The step that summands are brought to: 2⁻⁸ of the coarsest one."""
    return max(float(np.max(np.abs(part.step))) for part in parts) * _FINER
