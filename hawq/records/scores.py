"""Predicted increases of the loss: what each score says that quantising a block costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hawq.records.kinds import Amount, BitsKey, Count, Name, Product, Spread

WEIGHTS, ACTIVATIONS = "weights", "activations"
SCORES = {
    "eigenvalue": "λ_i · ‖ΔW_i‖² (HAWQ)",
    "trace": "Tr(H_i)/n_i · ‖ΔW_i‖² (HAWQ-V2)",
    "proxy": "a stand-in for λ_i, times ‖ΔW_i‖²",
    "given": "numbers from elsewhere",
    "kl": "mean KL(float ‖ block i alone at b bits), measured",
    "quadratic": "½ ΔW_iᵀ H_ii ΔW_i",
    "output_shift": "mean over samples of Σ (∂ℓ/∂Y)² · ΔY² over the outputs Y of the block's layers",
    "learned_steps": "2 Σ learned steps of the weights of the block's layers, Σ those of their inputs (LIMPQ)",
    "error": "‖ΔW_i‖²",
    "relative_error": "Σ ‖ΔW‖²/‖W‖² over the layers of the block",
}
"""Score → its formula, in the order in which "auto" prefers those that an analysis has found."""

BEYOND_CURVATURE = ("kl", "quadratic", "output_shift", "learned_steps")
"""Scores that an analysis measures for each block and bit-width, where they are asked for (`hawq.scoring`)."""

ByBits = dict[BitsKey, "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """By how much the loss is predicted to rise, with its error; below zero where the measured curvature was."""

    value: Product
    error: Spread = 0.0

    def moved(self, sign: int) -> Prediction:
        """One error up or down, as `sign` says (1 or −1)."""
        return replace(self, value=self.value + sign * self.error)


NOTHING = Prediction(0.0)


@dataclass(frozen=True)
class ScoreTable:
    """What one score predicts for every block, kind and bit-width.

    Args:
        score: its name, mostly one of `SCORES`.
        weights: block → bits → the increase if the block's weights alone are quantised.
        activations: the same for its input activations; without entries where they were not analysed.
        ranks: block → S_i, by which the published orders rank blocks: λ_i/n_i (HAWQ), Tr(H_i)/n_i (HAWQ-V2), else the
            increase per weight at the fewest bits.
        one_factor: whether the predictions of a block are one measured factor times known numbers, so that their errors
            are one error.
        seconds: that measuring it took; None where it follows from other numbers.
        gradient_equivalents: those seconds over the seconds of one forward and backward pass on as many samples.
        num_samples: that it was measured on.
    """

    score: Name
    weights: dict[Name, ByBits]
    activations: dict[Name, ByBits] = field(default_factory=dict)
    ranks: dict[Name, Prediction] = field(default_factory=dict)
    one_factor: bool = True
    seconds: Amount | None = field(default=None, compare=False)
    gradient_equivalents: Amount | None = field(default=None, compare=False)
    num_samples: Count | None = None

    def of(self, kind: str) -> dict[str, ByBits]:
        """Block → bits → prediction, for one kind."""
        return self.weights if kind == WEIGHTS else self.activations

    @property
    def is_flat(self) -> bool:
        """Whether nothing is predicted to raise the loss."""
        tables = (self.weights, self.activations)
        return not any(one.value > 0 for rows in tables for row in rows.values() for one in row.values())

    def moved(self, sign: Callable[[], int]) -> ScoreTable:
        """Every measured number one error up or down, as `sign` says (1 or −1) whenever it is asked."""

        def move(row: ByBits) -> ByBits:
            common = sign()
            return {bits: one.moved(common if self.one_factor else sign()) for bits, one in row.items()}

        weights, activations = ({name: move(row) for name, row in self.of(kind).items()} for kind in KINDS)
        return replace(self, weights=weights, activations=activations)


KINDS = (WEIGHTS, ACTIVATIONS)


WHOLE_PLANS = "kl"
"""The single score whose least correlation with whole plans, of all networks that were measured, is the highest."""

KL_AND_TRACE = "kl+trace"
"""The joint score that was measured beside it."""

JOINT = "+"  # between the names of scores that are taken together


def parts_of(score: str) -> tuple[str, ...]:
    """The scores whose geometric mean is asked for by "kl+trace"; a single name is itself."""
    return tuple(part.strip() for part in score.split(JOINT))


def combined(score: str, tables: Sequence[ScoreTable]) -> ScoreTable:
    """Ω_i(b) = (Π_s Ω_i^s(b))^(1/S), the geometric mean of S scores of the same blocks, for both kinds of bits.

    Each score may have its own unit. A factor that is not positive gives 0, the error is that of independent factors,
    relative to the mean: √(Σ_s (σ_s/Ω^s)²)/S. Only what all tables know is in the result.
    """

    def mean(each: Sequence[Prediction]) -> Prediction:
        if any(one.value <= 0 for one in each):
            return NOTHING
        value = math.exp(statistics.fmean(math.log(one.value) for one in each))
        return Prediction(value, value * math.hypot(*(one.error / one.value for one in each)) / len(each))

    def rows(each: Sequence[Mapping[str, ByBits]]) -> dict[str, ByBits]:
        return {
            name: {
                bits: mean([rows[name][bits] for rows in each])
                for bits in row
                if all(bits in rows[name] for rows in each)
            }
            for name, row in each[0].items()
            if all(name in rows for rows in each)
        }

    weights, activations = (rows([table.of(kind) for table in tables]) for kind in KINDS)
    seconds = [table.seconds for table in tables if table.seconds is not None]
    gradients = [table.gradient_equivalents for table in tables if table.gradient_equivalents is not None]
    samples = [table.num_samples for table in tables if table.num_samples is not None]
    return ScoreTable(
        score,
        weights,
        activations,
        one_factor=False,
        seconds=sum(seconds) if seconds else None,
        gradient_equivalents=sum(gradients) if gradients else None,
        num_samples=min(samples, default=None),
    )


def check_scores(name: str, scores: Sequence[str]) -> None:
    """Raises ValueError unless these are measured scores, none twice; `name` is the field's."""
    given = list(scores)
    if not set(given) <= set(BEYOND_CURVATURE) or len(set(given)) < len(given):
        allowed = ", ".join(BEYOND_CURVATURE)
        raise ValueError(f"{name}={given} is out of range: give some of {allowed}, none twice")
