"""Figures of a run. Matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.allocation import Frontier
from hawq.records import WEIGHTS, BitPlan, LossIncrease, Score, Sensitivity, Validated
from hawq.report.results import RecordedRow, phase_borders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _BLUE, _ORANGE, _GREY = "#222222", "#2b6cb0", "#d9730d", "#9aa0a6"
_SERIES = (_BLUE, _ORANGE, "#2f855a", "#b83280", "#6b46c1", "#718096")
_DPI = 160


def sensitivity_figure(sensitivity: Sensitivity, plan: BitPlan, path: Path) -> Path:
    """What decided the bits of each block, on logarithmic axes, above these bits.

    For a score by curvature that is λ_i (or what stands in for it) and S_i, else the predicted increase of the loss at
    the planned bits and S_i. Writes `path` and returns it. Raises UserError when the analysis lacks the plan's score.
    """
    names = [block.name for block in sensitivity.blocks]
    figure = new_figure(max(6.4, 0.42 * len(names) + 1.6), 6.4)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    score, ranks = plan.score, sensitivity.table(plan.score).ranks
    found = [row.curvature(score) for row in sensitivity.rows]
    measured = [one for one in found if one is not None]
    symbol = {"eigenvalue": "λ", "trace": "Tr H", "proxy": "c"}.get(score, "Ω")
    if len(measured) < len(found):
        bits_of = plan.weight_bits()
        pairs = [(block, bits_of[block.name]) for block in sensitivity.blocks]
        increases = [sensitivity.predicted(score, block, WEIGHTS, bits) for block, bits in pairs]
        _log_points(top, [one.value for one in increases], [one.error for one in increases], _BLUE)
    else:
        _log_points(top, [one.value for one in measured], [one.error for one in measured], _BLUE)
    top.set_ylabel(f"{symbol} (score: {score})")
    top.set_title(f"Sensitivity and bits per block — {plan.method}, W-Comp {plan.cost.w_comp:.2f}×", loc="left")
    _log_points(
        middle,
        [sensitivity.rank(score, block) for block in sensitivity.blocks],
        [ranks[name].error if name in ranks else 0.0 for name in names],
        _INK,
    )
    middle.set_ylabel("S" if symbol == "Ω" else f"S = {symbol} / weights")
    bits = list(plan.weight_bits().values())
    bars = bottom.bar(range(len(names)), bits, color=_ORANGE, width=0.65)
    bottom.bar_label(bars, fontsize=8, color=_INK)
    bottom.set_ylabel("weight bits")
    bottom.set_ylim(0, max(bits) * 1.25)
    bottom.set_yticks(range(0, max(bits) + 1, 2))
    bottom.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    bottom.set_xlabel("block, from input to output")
    return save_figure(figure, (top, middle, bottom), path)


def _log_points(axes: Axes, values: Sequence[float], errors: Sequence[float], color: str) -> None:
    """Points with error bars on a logarithmic axis; values of zero and below cannot be shown."""
    positive = [
        (place, value, error) for place, (value, error) in enumerate(zip(values, errors, strict=True)) if value > 0
    ]
    if not positive:
        return
    places, shown, above = zip(*positive, strict=True)
    below = [min(error, 0.9 * value) for _, value, error in positive]
    axes.errorbar(places, shown, [below, above], fmt="o", color=color, capsize=3)
    axes.set_yscale("log")


def finetuning_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]], float_accuracy: float, path: Path) -> Path:
    """Accuracy over fine-tuning steps above the training loss, with the borders of the phases.

    Args:
        histories: method → rows with step, phase, loss and, where it was measured, accuracy (%).
        float_accuracy: of the float network, in percent.
        path: a .png or .svg to write.
    """
    figure = new_figure(7.2, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (method, history), color in zip(histories.items(), (_BLUE, _ORANGE, _INK), strict=False):
        points = [(row["step"], row["accuracy"]) for row in history if "accuracy" in row]
        top.plot([step for step, _ in points], [value for _, value in points], "o-", color=color, label=method, ms=4)
        bottom.plot([row["step"] for row in history], [row["loss"] for row in history], color=color, linewidth=1)
    first = next(iter(histories.values()), [])
    for border in phase_borders(first):
        for axes in (top, bottom):
            axes.axvline(border, color=_GREY, linewidth=0.6, linestyle=":")
    top.axhline(float_accuracy, color=_GREY, linewidth=1, linestyle="--", label=f"float, {float_accuracy:.2f} %")
    top.set_ylabel("accuracy %")
    top.set_title("Fine-tuning; dotted lines: one more block is quantised", loc="left")
    top.legend(frameon=False, fontsize=8, loc="lower right")
    bottom.set_ylabel("training loss")
    bottom.set_xlabel("step")
    return save_figure(figure, (top, bottom), path)


def frontier_figure(frontier: Frontier, plan: BitPlan, path: Path) -> Path:
    """Σ Ω, the predicted increase of the loss, over the budget on logarithmic axes, with the plan itself marked.

    Writes `path` and returns it.
    """
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    shown = [point for point in frontier.points if point.objective > 0]
    axes.plot([p.target for p in shown], [p.objective for p in shown], "o-", color=_BLUE, ms=4, linewidth=1)
    if shown and plan.objective:
        reached = plan.limits[0].reached
        axes.plot([reached], [plan.objective], "o", color=_ORANGE, ms=8, label=f"this plan, {reached:,.6g}")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(frontier.unit)
    axes.set_ylabel(f"Σ Ω ({frontier.score})")
    axes.set_title("Least Σ Ω at each budget", loc="left")
    return save_figure(figure, (axes,), path)


def convergence_figure(
    rows: Mapping[str, Sequence[RecordedRow]], float_accuracy: float, curve_images: int | None, path: Path
) -> Path:
    """Accuracy over fine-tuning steps of several runs (the papers' figures 4 and 5), whole and from the last phase on.

    Dots mark where a further block is quantised; the numbers at the right are those of the packed files on all test
    images.

    Args:
        rows: label → one row per seed; the mean is drawn, and the range as a band.
        float_accuracy: of the float network, in percent.
        curve_images: test images that the curves were measured on, None for all.
        path: a .png or .svg to write.
    """
    figure = new_figure(11.5, 4.8)
    whole, ending = figure.subplots(1, 2, width_ratios=(1, 1))
    last_phase = max((row.borders[-1] for seeds in rows.values() for row in seeds if row.borders), default=0)
    ends = {}
    for (label, seeds), color in zip(rows.items(), cycle(_SERIES)):
        steps, values = _common_points(seeds)
        middle = values.mean(0)
        for axes in (whole, ending):
            axes.plot(steps, middle, color=color, linewidth=1.6)
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        at_border = np.isin(steps, seeds[0].borders[:-1])  # the last one begins the phase of all blocks
        whole.plot(steps[at_border], middle[at_border], "o", color=color, ms=3.5)
        result = np.mean([row.result.accuracy for row in seeds])
        ends[f"{label}  {result:.2f}"] = (float(steps[-1]), float(middle[-1]), color)
    shown = [y for line in ending.lines for x, y in zip(*line.get_data(), strict=True) if x > last_phase]
    ending.set_ylim(min(shown) - 0.3, max(*shown, float_accuracy) + 0.3)
    ending.set_xlim(last_phase, max(x for x, _, _ in ends.values()))
    for axes in (whole, ending):
        axes.axhline(float_accuracy, color=_INK, linewidth=1, linestyle="--")
        axes.set_xlabel("step")
    beside = {"transform": ending.get_yaxis_transform(), "va": "bottom", "fontsize": 8, "color": _INK}
    ending.text(0.01, float_accuracy, f"float {float_accuracy:.2f}", **beside)
    _label_ends(ending, ends)
    images = "all" if curve_images is None else f"the first {curve_images:,}"
    whole.set_ylabel(f"accuracy % on {images} test images")
    whole.set_title("Fine-tuning; dots: one more block is quantised", loc="left")
    ending.set_title("Once all blocks are quantised", loc="left")
    return save_figure(figure, (whole, ending), path)


def _common_points(seeds: Sequence[RecordedRow]) -> tuple[np.ndarray, np.ndarray]:
    """(points,) steps at which every seed was measured, and (seeds, points) accuracies there."""
    curves = [dict(row.curve) for row in seeds]
    steps = sorted(set(curves[0]).intersection(*curves))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Each line's name next to its end, outside the axes, moved apart where two would touch."""
    low, high = axes.get_ylim()
    apart, place = 0.055 * (high - low), -np.inf
    for label, (_, y, color) in sorted(ends.items(), key=lambda item: item[1][1]):
        place = max(y, place + apart)
        axes.annotate(
            label,
            (1, y),
            (1.06, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6},
        )


def validation_figure(result: Validated, path: Path) -> Path:
    """Predicted Ω against the true KL on logarithmic axes: a panel per score, a colour per bit-width.

    In older results the truth is the increase of the loss. A hollow mark below the points shows none; bars are standard
    errors. Writes `path` and returns it.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    panels = result.scores
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(2.9 * columns + 0.6, 2.7 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    whole = {(found.kind, found.score): found for found in result.correlations if found.bits is None}
    increases = result.truth.increases
    bit_widths = list(dict.fromkeys(row.bits for row in increases))
    colors = dict(zip(bit_widths, colormaps["viridis"](np.linspace(0.0, 0.9, len(bit_widths))), strict=True))
    for axes, score in zip(grid, panels, strict=False):
        _increases_over_score(axes, score, [row for row in increases if row.kind == score.kind], colors)
        rho = whole[score.kind, score.name].spearman
        of = "" if score.kind == "weights" else f", {score.kind}"
        axes.set_title(f"{score.name}{of}: ρ = {'–' if rho is None else f'{rho:.2f}'}", loc="left", fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("predicted Ω", fontsize=10)
    what = "KL" if all(row.kl is not None for row in increases) else "increase of the loss"
    figure.supylabel(f"true {what}, {result.truth.num_samples} held-out images", fontsize=10)
    marks = [Line2D([], [], marker="o", ls="none", color=color, label=f"{bits} bits") for bits, color in colors.items()]
    marks.append(Line2D([], [], marker="v", ls="none", mfc="none", color=_GREY, label="no increase"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=9)
    return save_figure(figure, list(grid[: len(panels)]), path)


def _increases_over_score(
    axes: Axes, score: Score, increases: Sequence[LossIncrease], colors: Mapping[int, Any]
) -> None:
    positive = [value for value, _ in map(_truth, increases) if value > 0]
    floor = min(positive, default=1.0) / 3
    for bits, color in colors.items():
        shown = [(score.omegas[row.block][bits], *_truth(row)) for row in increases if row.bits == bits]
        up = [(omega, value, error) for omega, value, error in shown if value > 0 < omega]
        if up:
            x, y, errors = zip(*up, strict=True)
            below = [min(error, 0.9 * value) for _, value, error in up]
            axes.errorbar(x, y, [below, errors], fmt="o", ms=4, elinewidth=0.8, color=color)
        rest = [omega for omega, value, _ in shown if value <= 0 < omega]
        axes.plot(rest, [floor] * len(rest), "v", ms=4, mfc="none", color=color)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(labelsize=8)


def _truth(row: LossIncrease) -> tuple[float, float]:
    """KL and its error, or in older results those of the increase of the loss."""
    return (row.loss, row.loss_error) if row.kl is None or row.kl_error is None else (row.kl, row.kl_error)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, axes: Sequence[Axes], path: Path) -> Path:
    """The finished figure in a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e5e7eb", linewidth=0.7)
        one.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)
    return path
