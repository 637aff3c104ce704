"""What each method predicts: the scores that are compared with the true increases of the loss."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hawq.records import MEASURED, BlockSensitivity, Estimate, Score

WEIGHTS, ACTIVATIONS = "weights", "activations"
PLAIN_ERROR = "error"


def curvature_score(
    name: str, rows: Sequence[BlockSensitivity], found: Mapping[str, Mapping[str, Estimate]], bit_widths: Sequence[int]
) -> Score:
    """Ω_i(b) from the quantisation errors in `rows` and the curvature that a solver found.

    Args:
        name: of the score.
        rows: of all blocks, with ‖Q_b(W_i) − W_i‖².
        found: block name → quantity → estimate; the first quantity is the solver's main one.
        bit_widths: of the predictions.

    Raises:
        UserError: a bit-width that was not analysed.
    """
    weighting = next(iter(found[rows[0].block.name]))
    mains = [found[row.block.name][weighting] for row in rows]
    nothing: dict[str, Any] = dict.fromkeys(MEASURED)
    scored = [replace(row, **(nothing | {weighting: main})) for row, main in zip(rows, mains, strict=True)]
    omegas = {row.block.name: {bits: row.omega(bits, weighting) for bits in bit_widths} for row in scored}
    return Score(name, WEIGHTS, weighting, omegas)


def gradient_seconds(estimates: Iterable[Estimate]) -> float | None:
    """Seconds of one forward and backward pass, the median over the estimates that state it; None if none does."""
    known = [e.seconds / e.gradient_equivalents for e in estimates if e.seconds and e.gradient_equivalents]
    return statistics.median(known) if known else None


def activation_scores(rows: Sequence[BlockSensitivity], bit_widths: Sequence[int]) -> tuple[Score, Score]:
    """Ω^a of HAWQ-V2 and the plain error ‖Q(a) − a‖², of the blocks that have activations of their own.

    Raises UserError for a block whose activations were not analysed.
    """
    own = [row for row in rows if row.block.num_activations]
    omegas = {row.block.name: {bits: row.activation_omega(bits) for bits in bit_widths} for row in own}
    errors = {row.block.name: {bits: (row.activation_errors or {})[bits] for bits in bit_widths} for row in own}
    return (
        Score("trace", ACTIVATIONS, "activation_trace", omegas),
        Score(PLAIN_ERROR, ACTIVATIONS, None, errors),
    )
