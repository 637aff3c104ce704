"""How well scores predict the true increases: Spearman's ρ, with intervals over resampled blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hawq.records import Correlation, LossIncrease, PlanCorrelation, PlanOutcome, PlanScore, Score
from hawq.validation.scores import PLAIN_ERROR

PLAN_TRUTHS = ("kl", "loss", "accuracy")
"""What scores of whole plans are compared with: fields of `PlanOutcome`, each the larger the worse."""


def correlate(
    increases: Sequence[LossIncrease], scores: Sequence[Score], bit_widths: Sequence[int], draws: int, seed: int
) -> tuple[Correlation, ...]:
    """Spearman's ρ of each score with the true KL, at each bit-width and over all of them.

    Where the KL is not known (older files), it is that with the increase of the loss.

    The resamples of the blocks, each block with all its bit-widths, are the same for all scores, so that the gain over
    the plain error (the score of that name and kind) is a paired difference.

    Args:
        increases: at least one per (block, bits) of each kind.
        scores: of the same blocks; one of each kind is the plain error.
        bit_widths: to compare at.
        draws: resamples behind each 95 % interval.
        seed: of the resamples.
    """
    found = []
    for kind in dict.fromkeys(score.kind for score in scores):
        known = {(row.block, row.bits): _truth(row) for row in increases if row.kind == kind}
        names = list(dict.fromkeys(name for name, _ in known))
        truth = np.array([[known[name, bits] for bits in bit_widths] for name in names])  # (blocks, bit-widths)
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


def _truth(row: LossIncrease) -> float:
    """The KL of the outputs, or in older files the increase of the loss."""
    return row.loss if row.kl is None else row.kl


def correlate_plans(
    outcomes: Sequence[PlanOutcome], scores: Sequence[PlanScore], draws: int, seed: int
) -> tuple[PlanCorrelation, ...]:
    """Spearman's ρ over plans of each score with KL, increase of the loss, and loss of accuracy.

    The resamples of the plans are the same for all scores, so that the gain over the plain error, and what a score lies
    behind the best one, are paired differences.

    Args:
        outcomes: of the plans.
        scores: of the same plans; one of them is the plain error.
        draws: resamples behind each 95 % interval.
        seed: of the resamples.
    """
    resamples = np.random.default_rng(seed).integers(len(outcomes), size=(draws, len(outcomes)))
    predicted = {score.name: np.array(score.predictions)[:, None] for score in scores}  # (plans, 1)
    found = []
    for name in PLAN_TRUTHS:
        truth = np.array([getattr(outcome, name) for outcome in outcomes])[:, None]
        values = {score: _spearman(own, truth) for score, own in predicted.items()}
        drawn = {score: _spearman_of_resamples(own, truth, resamples) for score, own in predicted.items()}
        best = max(values, key=lambda score: _least_if_none(values[score]))
        for score, value in values.items():
            gain, behind = _difference(value, values[PLAIN_ERROR]), _difference(values[best], value)
            intervals = (
                _interval(drawn[score], value),
                _interval(drawn[score] - drawn[PLAIN_ERROR], gain),
                _interval(drawn[best] - drawn[score], behind),
            )
            found.append(
                PlanCorrelation(
                    *(score, name, len(outcomes), value, intervals[0], gain, intervals[1], behind, intervals[2])
                )
            )
    return tuple(found)


def _least_if_none(value: float | None) -> float:
    return -np.inf if value is None else value


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _compare(
    kind: str, bits: int | None, truth: np.ndarray, scores: Mapping[str, np.ndarray], resamples: np.ndarray
) -> list[Correlation]:
    """All scores (blocks, bit-widths) against one truth of the same shape."""
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
    from scipy.stats import spearmanr

    if np.ptp(score) == 0 or np.ptp(truth) == 0:
        return None
    return float(spearmanr(score.reshape(-1), truth.reshape(-1)).statistic)


def _spearman_of_resamples(score: np.ndarray, truth: np.ndarray, resamples: np.ndarray) -> np.ndarray:
    """ρ of each resample (draws, blocks) of the blocks, (draws,); NaN where all its values are equal."""
    from scipy.stats import rankdata

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
