"""What the scores predicted, and what quantising single blocks truly did to the loss."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.records.kinds import Amount, BitsKey, CodeBits, Count, Name, Number, Spread

_SURE = 2  # standard errors that an increase must be away from zero


@dataclass(frozen=True)
class LossIncrease:
    """What quantising the `kind` of one block alone to `bits` does, everything else float.

    Args:
        block: its name.
        kind: "weights" or "activations".
        bits: the bit-width.
        loss, loss_error: increase of the mean loss, and the standard error of the mean of the differences per image.
        accuracy, accuracy_error: loss of accuracy in percentage points, and its standard error.
    """

    block: Name
    kind: Name
    bits: CodeBits
    loss: Number
    loss_error: Amount
    accuracy: Number
    accuracy_error: Amount

    @property
    def is_sure(self) -> bool:
        """Whether the loss increased by more than two standard errors."""
        return self.loss > _SURE * self.loss_error


@dataclass(frozen=True)
class LossIncreases:
    """All increases, in network order, and the float network they are measured from: its mean loss and accuracy (%)."""

    num_samples: Count
    loss: Number
    accuracy: Amount
    increases: tuple[LossIncrease, ...]


@dataclass(frozen=True)
class Score:
    """What a method predicts: Ω of each block at each bit-width, and what finding it cost.

    Args:
        name: of the method.
        kind: "weights" or "activations".
        weighting: the quantity that weighs the errors; None where the error ‖Q(W) − W‖² itself is the score.
        omegas: block name → bits → Ω.
        seconds: of the whole analysis, including the checks and the survey of the samples. The errors ‖Q(W) − W‖² are
            common to all scores and not counted.
        gradient_equivalents: those seconds over the seconds of one forward and backward pass.
    """

    name: Name
    kind: Name
    weighting: Name | None
    omegas: dict[Name, dict[BitsKey, Spread]]
    seconds: Amount | None = None
    gradient_equivalents: Amount | None = None


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between a score and the true increase of the loss, and the gain ρ − ρ(plain error).

    Over blocks at one bit-width, or over (block, bits) if `bits` is None. Each has a 95 % interval over resampled
    blocks. None where it is undefined, because all values are equal.
    """

    score: Name
    kind: Name
    bits: CodeBits | None
    num_points: Count
    spearman: float | None
    interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Validated:
    """The whole result of a validation: the true increases, all scores and their correlations."""

    truth: LossIncreases
    scores: tuple[Score, ...]
    correlations: tuple[Correlation, ...]
