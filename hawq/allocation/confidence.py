"""Whether a plan holds within the errors of the curvature it was made from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from hawq.allocation.allocator import Weighted
from hawq.records import BitPlan, Confidence, Estimate, Precision, Sensitivity


def confidence(
    sensitivity: Sensitivity, allocator: Weighted, plan: BitPlan, draws: int, seed: int = 0
) -> Confidence | None:
    """The plan made again `draws` times, each λ_i or trace moved to value ± error by a coin of its own (seeded).

    None where no error is stated, as in files made from published numbers.
    """
    weighting = sensitivity.weighting(allocator.weighting)
    if not any(row.curvature(weighting).error for row in sensitivity.rows):
        return None
    rng = np.random.default_rng(seed)
    seen = [allocator.allocate(_moved(sensitivity, rng)).precisions for _ in range(draws)]
    changes = {
        name: dict(Counter(_label(other[name]) for other in seen).most_common())
        for name, bits in plan.precisions.items()
        if any(other[name] != bits for other in seen)
    }
    return Confidence(draws, changes)


def _label(precision: Precision) -> str:
    return f"{precision.weight_bits}/{precision.activation_bits}"


def _moved(sensitivity: Sensitivity, rng: np.random.Generator) -> Sensitivity:
    """Every estimate one error up or down."""

    def move(estimate: Estimate | None) -> Estimate | None:
        sign = 1 if rng.random() < 0.5 else -1
        return estimate and replace(estimate, value=estimate.value + sign * estimate.error)

    rows = [
        replace(
            row,
            eigenvalue=move(row.eigenvalue),
            trace=move(row.trace),
            proxy=move(row.proxy),
            activation_trace=move(row.activation_trace),
        )
        for row in sensitivity.rows
    ]
    return replace(sensitivity, rows=tuple(rows))
