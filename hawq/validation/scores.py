"""What each method predicts: the scores that are compared with the true increases of the loss."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hawq.records import (
    ACTIVATIONS,
    MEASURED,
    WEIGHTS,
    BlockSensitivity,
    Estimate,
    PlanScore,
    Precision,
    Score,
    Sensitivity,
)

PLAIN_ERROR = "error"


@dataclass(frozen=True)
class Compared:
    """A score that is compared with others: under its own name, a score of a sensitivity.

    Args:
        name: in tables.
        sensitivity: that holds the predictions.
        score: its name there.
        typed: how to choose bits by it.
        seconds, gradient_equivalents: what finding it cost; None where that is not known.
    """

    name: str
    sensitivity: Sensitivity
    score: str
    typed: str
    seconds: float | None = None
    gradient_equivalents: float | None = None

    def of_blocks(self, kind: str, bit_widths: Sequence[int]) -> Score:
        """What it predicts of each block alone. Raises UserError for a bit-width that was not analysed."""
        found = table_score(self.name, self.sensitivity, self.score, kind, bit_widths)
        return replace(found, seconds=self.seconds, gradient_equivalents=self.gradient_equivalents)

    def of_plans(self, plans: Sequence[Mapping[str, Precision]]) -> PlanScore:
        """The sum that it predicts of each plan: of the weights, and of activations where it says something of them.

        Raises UserError for a bit-width that was not analysed.
        """
        blocks = self.sensitivity.blocks
        both = bool(self.sensitivity.table(self.score).activations)

        def total(plan: Mapping[str, Precision]) -> float:
            bits = [(block, WEIGHTS, plan[block.name].weight_bits) for block in blocks]
            bits += [(block, ACTIVATIONS, plan[block.name].activation_bits) for block in blocks] if both else []
            return sum(self.sensitivity.predicted(self.score, *one).value for one in bits)

        return PlanScore(self.name, self.typed, tuple(map(total, plans)))


def compared_curvature(
    name: str, rows: Sequence[BlockSensitivity], found: Mapping[str, Mapping[str, Estimate]]
) -> Compared:
    """The score by the curvature that a solver found, with the quantisation errors in `rows`.

    Args:
        name: of the score, that of the solver's option.
        rows: of all blocks, with ‖Q_b(W_i) − W_i‖².
        found: block name → quantity → estimate; the first quantity is the solver's main one.
    """
    weighting = next(iter(found[rows[0].block.name]))
    nothing: dict[str, Any] = dict.fromkeys(MEASURED)
    measured = tuple(replace(row, **(nothing | {weighting: found[row.block.name][weighting]})) for row in rows)
    return Compared(name, Sensitivity(measured, name, 0, 0.0), weighting, f"solver={name} bits.score={weighting}")


def curvature_score(
    name: str, rows: Sequence[BlockSensitivity], found: Mapping[str, Mapping[str, Estimate]], bit_widths: Sequence[int]
) -> Score:
    """Ω_i(b) by `compared_curvature`. Raises UserError for a bit-width that was not analysed."""
    return compared_curvature(name, rows, found).of_blocks(WEIGHTS, bit_widths)


def table_score(name: str, sensitivity: Sensitivity, score: str, kind: str, bit_widths: Sequence[int]) -> Score:
    """What a score of an analysis predicts, under a `name` of its own, of the blocks that have this kind of bits.

    Raises UserError for a bit-width that was not analysed.
    """
    blocks = [block for block in sensitivity.blocks if kind == WEIGHTS or block.num_activations]
    omegas = {
        block.name: {bits: sensitivity.predicted(score, block, kind, bits).value for bits in bit_widths}
        for block in blocks
    }
    return Score(name, kind, None if score == PLAIN_ERROR else score, omegas)


def gradient_seconds(estimates: Iterable[Estimate]) -> float | None:
    """Seconds of one forward and backward pass, the median over the estimates that state it; None if none does."""
    known = [e.seconds / e.gradient_equivalents for e in estimates if e.seconds and e.gradient_equivalents]
    return statistics.median(known) if known else None


def activation_scores(rows: Sequence[BlockSensitivity], bit_widths: Sequence[int]) -> tuple[Score, Score]:
    """Ω^a of HAWQ-V2 and the plain error ‖Q(a) − a‖², of the blocks that have activations of their own.

    Raises UserError for a block whose activations were not analysed.
    """
    analysis = Sensitivity(tuple(rows), "activations", 0, 0.0)
    omega = table_score("trace", analysis, analysis.score_name(), ACTIVATIONS, bit_widths)
    plain = table_score(PLAIN_ERROR, analysis, PLAIN_ERROR, ACTIVATIONS, bit_widths)
    return replace(omega, weighting="activation_trace"), plain
