"""What the scores predicted, and what quantising single blocks truly did to the loss."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.records.kinds import Amount, BitsKey, BitsPair, CodeBits, Count, Name, Number, Spread

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
        kl, kl_error: mean KL(float ‖ quantised) of the outputs, and its standard error; None in older files.
    """

    block: Name
    kind: Name
    bits: CodeBits
    loss: Number
    loss_error: Amount
    accuracy: Number
    accuracy_error: Amount
    kl: Amount | None = None
    kl_error: Amount | None = None

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
    """Spearman's ρ between a score and the truth (KL; in older files the increase of the loss), and its gain over the
    plain error, ρ − ρ(plain error).

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
class PlanOutcome:
    """What a whole plan does, each image paired with itself in the float network.

    Args:
        bits: block → weight bits, or weight bits/activation bits.
        w_comp: 32 Σ n / Σ b n.
        kl, kl_error: mean KL(float ‖ quantised) of the outputs, and its standard error.
        loss, loss_error: increase of the mean cross-entropy, and its standard error.
        accuracy, accuracy_error: loss of accuracy in percentage points, and its standard error.
    """

    bits: dict[Name, BitsPair]
    w_comp: Amount
    kl: Amount
    kl_error: Amount
    loss: Number
    loss_error: Amount
    accuracy: Number
    accuracy_error: Amount


@dataclass(frozen=True)
class PlanScore:
    """What a score predicts for each plan: the sum over its blocks; `typed` is how to choose bits by it."""

    name: Name
    typed: Name
    predictions: tuple[Spread, ...]


@dataclass(frozen=True)
class PlanCorrelation:
    """Spearman's ρ over whole plans between a score and a truth ("kl", "loss" or "accuracy": the loss of it).

    Args:
        score, truth: names.
        num_plans: behind it.
        spearman, interval: ρ, and its 95 % interval over resampled plans; None where all values are equal.
        gain, gain_interval: ρ − ρ(plain error), on the same resamples.
        behind, behind_interval: ρ(best score) − ρ, on the same resamples; the best is that with the largest ρ.
    """

    score: Name
    truth: Name
    num_plans: Count
    spearman: float | None
    interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    behind: float | None
    behind_interval: tuple[float, float] | None


@dataclass(frozen=True)
class ValidatedPlans:
    """Random plans of one size, what they do, and how well each score ranks them.

    Args:
        w_comp: that all plans have within 1 %.
        steps: of joint training that each plan had; 0 for none.
        num_samples: held-out images.
        loss, accuracy: of the float network on these, accuracy in percent.
        outcomes, scores, correlations: plans in the order in which they were drawn.
    """

    w_comp: Amount
    steps: Count
    num_samples: Count
    loss: Number
    accuracy: Amount
    outcomes: tuple[PlanOutcome, ...]
    scores: tuple[PlanScore, ...]
    correlations: tuple[PlanCorrelation, ...]


@dataclass(frozen=True)
class Validated:
    """The whole result of a validation: single blocks, and whole plans untrained and trained.

    Args:
        truth: what quantising single blocks does.
        scores: what each score predicts of it.
        correlations: of the scores with the truth.
        plans: random plans of one size, one entry for those without and one for those with training.
    """

    truth: LossIncreases
    scores: tuple[Score, ...]
    correlations: tuple[Correlation, ...]
    plans: tuple[ValidatedPlans, ...] = ()
