"""What quantising one block alone truly costs on held-out images, and how well each score foretells it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from hawq.components import component
from hawq.costs import plan_cost
from hawq.curvature import Batch, CurvatureCheckpoint
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.progress import SILENT, Progress
from hawq.quantization import BIT_WIDTHS, Quantizer, quantize
from hawq.records import (
    FLOAT_BITS,
    MEASURED,
    BitPlan,
    Block,
    BlockSensitivity,
    Estimate,
    Precision,
    from_dict,
    to_dict,
)

WEIGHTS, ACTIVATIONS = "weights", "activations"
PLAIN_ERROR = "error"
_SURE = 2  # standard errors that a rise must be away from zero


@component("validate/validation", not_in_key=("batch_size", "save_every_seconds"))
@dataclass(frozen=True)
class Validation:
    """How the scores are tried.

    Args:
        num_samples: held-out images, drawn once by the run's seed; at most those that are there.
        batch_size: images in one forward.
        widths: bits at which each block is quantised alone.
        solvers: options of conf/solver whose scores are compared; the run's own one keeps the values it was given.
        draws: of the bootstrap over blocks that the intervals come from.
        save_every_seconds: how often half-done work is stored, so that a killed run can go on.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int
    batch_size: int
    bit_widths: tuple[int, ...]
    solvers: tuple[str, ...]
    draws: int
    save_every_seconds: float

    def __post_init__(self) -> None:
        for key, least in (("num_samples", 2), ("batch_size", 1), ("draws", 1), ("save_every_seconds", 0)):
            if not getattr(self, key) >= least:
                raise ValueError(f"validation.{key}={getattr(self, key)} is out of range: give {least} or more")
        for key in ("bit_widths", "solvers"):
            if len(set(getattr(self, key))) < max(len(getattr(self, key)), 1):
                raise ValueError(f"validation.{key}={list(getattr(self, key))} must name at least one, none twice")
        if not set(self.bit_widths) <= set(BIT_WIDTHS):
            raise ValueError(
                f"validation.bit_widths={list(self.bit_widths)} is out of range: give some of {list(BIT_WIDTHS)}"
            )


@dataclass(frozen=True)
class LossIncrease:
    """What quantising the `kind` of one block alone to `bits` does, everything else float.

    `loss` is the rise of the mean loss, `accuracy` the fall of accuracy in points; each with the standard error of the
    mean of the differences image by image.
    """

    block: str
    kind: str
    bits: int
    loss: float
    loss_error: float
    accuracy: float
    accuracy_error: float

    @property
    def is_sure(self) -> bool:
        """Whether the loss rose by more than chance would have it."""
        return self.loss > _SURE * self.loss_error


@dataclass(frozen=True)
class LossIncreases:
    """All rises, in network order, and the float network they are measured from: its mean loss and accuracy."""

    num_samples: int
    loss: float
    accuracy: float
    increases: tuple[LossIncrease, ...]


@dataclass(frozen=True)
class Score:
    """What a method foretells: Ω of each block at each width, and what finding it took.

    `weighting` is the quantity that weighs the errors, None where the error ‖Q(W) − W‖² itself is the score. The
    curvature scores use these errors too; their cost is not counted again. `seconds` are those of the whole analysis,
    checks and survey of the samples included.
    """

    name: str
    kind: str
    weighting: str | None
    omegas: dict[str, dict[int, float]]
    seconds: float | None = None
    gradient_equivalents: float | None = None


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between a score and the true rise, over blocks at one width, or over (block, width) if `bits` is
    None; and the gain ρ − ρ(plain error). Each with a 95 % interval over resampled blocks.

    None where it means nothing: all values equal.
    """

    score: str
    kind: str
    bits: int | None
    num_points: int
    spearman: float | None
    interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Validated:
    """Everything that was found."""

    truth: LossIncreases
    scores: tuple[Score, ...]
    correlations: tuple[Correlation, ...]


def loss_increases(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer,
    bit_widths: Sequence[int],
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    calibration: Sequence[Tensor] = (),
    checkpoint: CurvatureCheckpoint | None = None,
    save_every_seconds: float = 20.0,
    progress: Progress = SILENT,
) -> LossIncreases:
    """Quantises each block alone, at each width, and measures what that does to the loss of each image.

    Args:
        model: the float network; it stays as it is.
        blocks: from `find_blocks`, traced.
        batches: held-out (inputs, targets) pairs on the model's device.
        loss: (outputs, targets) → loss of each sample (N,).
        calibration: inputs (N, ...) that activation ranges are chosen from; where given, the input activations of
            each block are quantised alone as well.
        checkpoint: where finished blocks are stored, at most every `save_every_seconds`, and taken up again.
        progress: hears of every trial.

    Raises:
        UserError: fewer than two images, or a loss that is not finite.
    """
    float_losses, float_hits = _outcomes(model, batches, loss)
    if len(float_losses) < 2:
        raise UserError("validation needs two held-out images or more: their differences give the standard error")
    kept = checkpoint.load() if checkpoint else None
    increases = [from_dict(row, LossIncrease) for row in kept["increases"]] if kept else []
    ready, saved = {rise.block for rise in increases}, time.monotonic()
    trials = {block.name: list(_trials(block, bit_widths, bool(calibration))) for block in blocks}
    with progress.task("validation", sum(map(len, trials.values())), done=len(increases)) as task:
        for name in (block.name for block in blocks if block.name not in ready):
            for kind, bits, precision in trials[name]:
                inputs = calibration if kind == ACTIVATIONS else [batches[0][0][:1]]  # weights need no calibration
                losses, hits = _outcomes(_alone(model, blocks, name, precision, quantizer, inputs), batches, loss)
                if not bool(losses.isfinite().all()):
                    raise UserError(f"with the {kind} of block {name!r} at {bits} bits the loss is not finite")
                increases.append(
                    LossIncrease(name, kind, bits, *_mean(losses - float_losses), *_mean(100 * (float_hits - hits)))
                )
                task.advance(1, f"{name} at {bits} bits: {increases[-1].loss:+.2g}")
            if checkpoint and time.monotonic() - saved >= save_every_seconds:
                checkpoint.save({"increases": [to_dict(rise) for rise in increases]})
                saved = time.monotonic()
    return LossIncreases(
        len(float_losses), float(float_losses.mean()), 100 * float(float_hits.mean()), tuple(increases)
    )


def _trials(block: Block, bit_widths: Sequence[int], activations: bool) -> Iterator[tuple[str, int, Precision]]:
    """What is tried of one block; one that reads only the image has no activations of its own."""
    yield from ((WEIGHTS, bits, Precision(bits, FLOAT_BITS)) for bits in bit_widths)
    if activations and block.num_activations:
        yield from ((ACTIVATIONS, bits, Precision(FLOAT_BITS, bits)) for bits in bit_widths)


def _alone(
    model: nn.Module,
    blocks: Sequence[Block],
    name: str,
    precision: Precision,
    quantizer: Quantizer,
    inputs: Sequence[Tensor],
) -> nn.Module:
    """A copy of `model` in which one block alone is quantised."""
    untouched = Precision(FLOAT_BITS, FLOAT_BITS)
    precisions = {block.name: precision if block.name == name else untouched for block in blocks}
    plan = BitPlan(precisions, "alone", plan_cost(blocks, precisions))
    return quantize(model, blocks, plan, inputs, quantizer, carry_batch_norm=False)


def _outcomes(
    model: nn.Module, batches: Sequence[Batch], loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Loss of each image (N,), and 1 where the largest output is its label, else 0 (N,); float64."""
    losses, hits = [], []
    with analysis_mode(model, []), torch.no_grad():
        for images, labels in batches:
            outputs = model(images)
            losses.append(loss(outputs, labels).double())
            hits.append((outputs.argmax(1) == labels).double())
    return torch.cat(losses), torch.cat(hits)


def _mean(differences: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))


def curvature_score(
    name: str, rows: Sequence[BlockSensitivity], found: Mapping[str, Mapping[str, Estimate]], bit_widths: Sequence[int]
) -> Score:
    """Ω_i(b) with the errors of `rows` and the curvature that a solver found, whose main estimate stands first."""
    weighting = next(iter(found[rows[0].block.name]))
    mains = [found[row.block.name][weighting] for row in rows]
    nothing: dict[str, Any] = dict.fromkeys(MEASURED)
    scored = [replace(row, **(nothing | {weighting: main})) for row, main in zip(rows, mains, strict=True)]
    omegas = {row.block.name: {bits: row.omega(bits, weighting) for bits in bit_widths} for row in scored}
    return Score(name, WEIGHTS, weighting, omegas)


def gradient_seconds(estimates: Iterable[Estimate]) -> float | None:
    """Seconds of one forward and backward, the median over the estimates that know it; None if none does."""
    known = [e.seconds / e.gradient_equivalents for e in estimates if e.seconds and e.gradient_equivalents]
    return statistics.median(known) if known else None


def activation_scores(rows: Sequence[BlockSensitivity], bit_widths: Sequence[int]) -> tuple[Score, Score]:
    """Ω^a of HAWQ-V2 and the plain error ‖Q(a) − a‖², of the blocks that have activations of their own."""
    own = [row for row in rows if row.block.num_activations]
    omegas = {row.block.name: {bits: row.activation_omega(bits) for bits in bit_widths} for row in own}
    errors = {row.block.name: {bits: (row.activation_errors or {})[bits] for bits in bit_widths} for row in own}
    return (
        Score("trace", ACTIVATIONS, "activation_trace", omegas),
        Score(PLAIN_ERROR, ACTIVATIONS, None, errors),
    )


def correlate(
    increases: Sequence[LossIncrease], scores: Sequence[Score], bit_widths: Sequence[int], draws: int, seed: int
) -> tuple[Correlation, ...]:
    """Spearman's ρ of every score with the true rise of the loss, at each width and over all of them.

    Intervals come from `draws` resamples of the blocks, each with all its widths; the same for all scores, so that the
    gain over the plain error (the score of that name and kind) is a paired difference.
    """
    found = []
    for kind in dict.fromkeys(score.kind for score in scores):
        known = {(rise.block, rise.bits): rise.loss for rise in increases if rise.kind == kind}
        names = list(dict.fromkeys(name for name, _ in known))
        truth = np.array([[known[name, bits] for bits in bit_widths] for name in names])  # (blocks, widths)
        resamples = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
        own = {
            score.name: np.array([[score.omegas[name][bits] for bits in bit_widths] for name in names])
            for score in scores
            if score.kind == kind
        }
        for bits in (*bit_widths, None):
            columns = slice(None) if bits is None else [bit_widths.index(bits)]
            found += _compare(kind, bits, truth[:, columns], {s: v[:, columns] for s, v in own.items()}, resamples)
    return tuple(found)


def _compare(
    kind: str, bits: int | None, truth: np.ndarray, scores: Mapping[str, np.ndarray], resamples: np.ndarray
) -> list[Correlation]:
    """All scores (blocks, widths) against one truth of the same shape."""
    values = {name: _spearman(score, truth) for name, score in scores.items()}
    drawn = {name: _spearman_of_resamples(score, truth, resamples) for name, score in scores.items()}
    plain, plain_drawn = values[PLAIN_ERROR], drawn[PLAIN_ERROR]
    rows = []
    for name, value in values.items():
        gain = None if value is None or plain is None else value - plain
        intervals = _interval(drawn[name], value), _interval(drawn[name] - plain_drawn, gain)
        rows.append(Correlation(name, kind, bits, truth.size, value, intervals[0], gain, intervals[1]))
    return rows


def _spearman(score: np.ndarray, truth: np.ndarray) -> float | None:
    if np.ptp(score) == 0 or np.ptp(truth) == 0:
        return None
    return float(spearmanr(score.reshape(-1), truth.reshape(-1)).statistic)


def _spearman_of_resamples(score: np.ndarray, truth: np.ndarray, resamples: np.ndarray) -> np.ndarray:
    """ρ of every resample of blocks, (draws,); NaN where all values of one are equal."""
    ranks = [rankdata(values[resamples].reshape(len(resamples), -1), axis=1) for values in (score, truth)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(resamples), np.nan), where=size > 0)


def _interval(drawn: np.ndarray, value: float | None) -> tuple[float, float] | None:
    """The middle 95 % of what was drawn."""
    known = drawn[~np.isnan(drawn)]
    if value is None or not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
