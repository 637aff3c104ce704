"""What each minute of calibration, reconstruction or training buys: accuracy against minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from hawq.report.figures import _INK, _SERIES, new_figure, save_figure
from hawq.report.intervals import half_width

_BELOW = (6, -9)  # points from a dot to its label, where a rising line does not run


@dataclass(frozen=True)
class Paid:
    """What one recipe ends with, and what it took.

    Args:
        label: shown beside the point.
        accuracies: of the seeds, in percent.
        minutes: of the seeds, the whole run.
        parent: accuracy of the float network, in percent.
    """

    label: str
    accuracies: tuple[float, ...]
    minutes: tuple[float, ...]
    parent: float

    @property
    def accuracy(self) -> tuple[float, float]:
        """Mean of the seeds, and half its 95 % interval (Student's t); NaN for a single seed."""
        return sum(self.accuracies) / len(self.accuracies), half_width(self.accuracies)

    @property
    def mean_minutes(self) -> float:
        """Mean of the seeds."""
        return sum(self.minutes) / len(self.minutes)


def minutes_figure(series: Mapping[str, Sequence[Paid]], path: Path) -> Path:
    """Accuracy over minutes on a logarithmic axis: one line per series, bars for 95 % intervals of the seeds' mean.

    Dashed lines are the float networks of the series.

    Args:
        series: name → its recipes, drawn in the order of their minutes.
        path: a .png or .svg to write.

    Raises:
        ValueError: the recipes of a series are of float networks of different accuracy, or a run took no time.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = new_figure(7.6, 4.8)
    axes = figure.subplots()
    for (name, recipes), color in zip(series.items(), cycle(_SERIES), strict=False):
        parents = {round(recipe.parent, 2) for recipe in recipes}
        if len(parents) > 1:
            raise ValueError(f"{name} has float networks of accuracy {sorted(parents)}: give runs that share one")
        ordered = sorted(recipes, key=lambda recipe: recipe.mean_minutes)
        minutes = [recipe.mean_minutes for recipe in ordered]
        if minutes[0] <= 0:
            raise ValueError(f"{name}, {ordered[0].label}: its minutes are not known")
        means, halves = zip(*(recipe.accuracy for recipe in ordered), strict=True)
        axes.errorbar(minutes, means, halves, fmt="o-", ms=4, capsize=3, color=color, label=name)
        axes.axhline(parents.pop(), color=color, linewidth=0.9, linestyle="--")
        for recipe, minute, mean in zip(ordered, minutes, means, strict=True):
            axes.annotate(recipe.label, (minute, mean), _BELOW, textcoords="offset points", fontsize=7.5, color=_INK)
    axes.set_xscale("log")
    axes.margins(x=0.14)  # room for the last label
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("minutes")
    axes.set_ylabel("accuracy %\nbars: 95 % for the mean of the seeds")
    axes.set_title("What each minute buys; dashed: the float network", loc="left")
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="lower right")
    return save_figure(figure, (axes,), path)
