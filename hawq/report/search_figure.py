"""How far each search for a plan has come by how many measured plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import numpy as np

from hawq.report.figures import _INK, _SERIES, new_figure, save_figure


def searches_figure(curves: Mapping[str, Sequence[Sequence[float]]], label: str, title: str, path: Path) -> Path:
    """Best value so far over measured plans: the median of the seeds, and their range as a band.

    Args:
        curves: search → one curve per seed, the best value after 1, 2, … measured plans; less is better. A search of a
            single plan is a dashed line.
        label: of the values.
        title: of the figure.
        path: a .png or .svg to write.
    """
    figure = new_figure(7.6, 4.8)
    axes = figure.subplots()
    longest = max(len(curve) for seeds in curves.values() for curve in seeds)
    colors = {True: cycle(reversed(_SERIES)), False: cycle(_SERIES)}  # so that searches share none while they can
    for name, seeds in curves.items():
        values = np.array([_extended(curve, longest) for curve in seeds])  # (seeds, plans)
        single = all(len(curve) == 1 for curve in seeds)
        color = next(colors[single])
        style = {"linestyle": "--", "linewidth": 1.0} if single else {"linewidth": 1.6}
        axes.plot(np.arange(1, longest + 1), np.median(values, 0), color=color, label=name, **style)  # type: ignore[arg-type]
        if len(seeds) > 1:
            low, high = values.min(0), values.max(0)
            axes.fill_between(np.arange(1, longest + 1), low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured plans")
    axes.set_ylabel(fill(label, 44))
    axes.set_title(title, loc="left")
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK)
    return save_figure(figure, (axes,), path)


def _extended(curve: Sequence[float], length: int) -> list[float]:
    """A curve that stays at its last value, a search that ended early."""
    return [*curve, *[curve[-1]] * (length - len(curve))]
