"""How well scores rank whole plans, as a table, in words, and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hawq.records import PlanCorrelation, ValidatedPlans
from hawq.report.figures import new_figure, save_figure
from hawq.report.tables import markdown
from hawq.validation import PLAIN_ERROR, PLAN_TRUTHS

_BLUE, _GREY = "#2b6cb0", "#9aa0a6"


def validated_plans_rows(result: ValidatedPlans) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: each score, its ρ with KL, loss and accuracy, and its differences with their intervals."""
    columns = ("score", "ρ KL", "low", "high", "gain", "gain low", "gain high", "ρ loss", "ρ accuracy", "choose by")
    known = {(found.score, found.truth): found for found in result.correlations}
    rows: list[tuple[Any, ...]] = []
    for score in result.scores:
        kl, loss, accuracy = (known[score.name, truth] for truth in PLAN_TRUTHS)
        ends = (*(kl.interval or (None, None)), kl.gain, *(kl.gain_interval or (None, None)))
        rows.append((score.name, kl.spearman, *ends, loss.spearman, accuracy.spearman, score.typed))
    return columns, sorted(rows, key=lambda row: -2.0 if row[1] is None else row[1], reverse=True)


def validated_plans_table(result: ValidatedPlans) -> str:
    """The correlations of all scores over whole plans, what the plans do, and which score to use on this network."""
    columns, rows = validated_plans_rows(result)
    outcomes = result.outcomes
    ends = {name: [f(getattr(one, name) for one in outcomes) for f in (min, max)] for name in ("kl", "accuracy")}
    title = (
        f"Spearman's ρ over {len(outcomes)} random plans of W-Comp {result.w_comp:.4g} (within 1 %), {_trained(result)}"
        f", on {result.num_samples} held-out images (float network: accuracy {result.accuracy:.2f} %); "
        "gain: over the plain error; low and high: 95 % of the resamples of the plans"
    )
    plans = (
        f"KL of the plans: {ends['kl'][0]:.3g} to {ends['kl'][1]:.3g}; accuracy: "
        f"{result.accuracy - ends['accuracy'][1]:.2f} to {result.accuracy - ends['accuracy'][0]:.2f} %"
    )
    cells = [["–" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "\n\n".join((title, markdown(columns, cells), plans, verdict(result)))


def _trained(result: ValidatedPlans) -> str:
    return f"after {result.steps} joint training steps" if result.steps else "without training"


def verdict(result: ValidatedPlans) -> str:
    """Which score to choose bits by on this network, and which others these plans do not tell from it.

    A difference counts where its paired 95 % interval leaves zero.
    """
    by_kl = [found for found in result.correlations if found.truth == PLAN_TRUTHS[0] and found.spearman is not None]
    typed = {score.name: score.typed for score in result.scores}
    if not by_kl:
        return "No score can be ranked: all plans, or all predictions, are equal."
    best = max(by_kl, key=_rho)
    equal = [found for found in by_kl if found.score != best.score and not _leaves_zero(found)]
    worse = [found for found in by_kl if _leaves_zero(found)]
    where = f"On this network, {_trained(result)}, {len(result.outcomes)} plans"
    behind = f" Proven worse than the best: {_named(worse)}." if worse else ""
    if best.score == PLAIN_ERROR or any(found.score == PLAIN_ERROR for found in equal):
        others = [found for found in equal if found.score != PLAIN_ERROR]
        level = f" Not told apart from the best: {_named(others)}." if others else ""
        return (
            f"{where} prove no score better than the plain error (best: {best.score}, ρ = {best.spearman:.2f}; plain "
            f"error: {_plain(by_kl)}): {typed[PLAIN_ERROR]} is free; more validate.plans tell smaller differences."
            f"{level}{behind}"
        )
    if not equal:
        return f"{where} rank {best.score} best (ρ = {best.spearman:.2f}): give {typed[best.score]}.{behind}"
    return (
        f"{where} rank {best.score} best (ρ = {best.spearman:.2f}): give {typed[best.score]}. "
        f"Not told apart from it: {_named(equal)}.{behind}"
    )


def _named(found: Sequence[PlanCorrelation]) -> str:
    return ", ".join(f"{one.score} ({one.spearman:.2f})" for one in sorted(found, key=_rho, reverse=True))


def _plain(found: Sequence[PlanCorrelation]) -> str:
    return next((f"{one.spearman:.2f}" for one in found if one.score == PLAIN_ERROR), "–")


def _rho(found: PlanCorrelation) -> float:
    return found.spearman or 0.0


def _leaves_zero(found: PlanCorrelation) -> bool:
    """Whether a score is behind the best one by more than sampling error."""
    return found.behind_interval is not None and found.behind_interval[0] > 0


def plans_figure(result: ValidatedPlans, path: Path) -> Path:
    """Predicted sum against the true KL of each plan, a panel per score, best first; the verdict above.

    Writes `path` and returns it.
    """
    from textwrap import fill

    rows = [(row[0], row[1]) for row in validated_plans_rows(result)[1]]
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = new_figure(2.9 * columns + 0.6, 2.5 * lines + 1.3)
    grid = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    predictions = {score.name: score.predictions for score in result.scores}
    for axes, (name, rho) in zip(grid, rows, strict=False):
        _panel(axes, predictions[name], result)
        axes.set_title(f"{name}: ρ = {'–' if rho is None else f'{rho:.2f}'}", loc="left", fontsize=10)
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    figure.suptitle(fill(verdict(result), 38 * columns), fontsize=9, x=0.01, ha="left")
    figure.supxlabel("predicted: Σ over blocks", fontsize=10)
    figure.supylabel(f"true KL, {result.num_samples} held-out images", fontsize=10)
    return save_figure(figure, list(grid[: len(rows)]), path)


def _panel(axes: Any, predictions: Sequence[float], result: ValidatedPlans) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    points = [(x, one.kl, one.kl_error) for x, one in zip(predictions, result.outcomes, strict=True) if x > 0 < one.kl]
    if points:
        x, y, errors = zip(*points, strict=True)
        below = [min(error, 0.9 * value) for value, error in zip(y, errors, strict=True)]
        axes.errorbar(x, y, [below, errors], fmt="o", ms=4, elinewidth=0.7, color=_BLUE, ecolor=_GREY)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
