"""The table of a comparison of searches: what each ends with on images that it was not judged on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hawq.report.intervals import half_width
from hawq.report.tables import markdown
from hawq.report.wording import signed

OPTIMUM = "optimum by"
"""The names of plans that no search looked for begin so."""

_Group = Sequence[Mapping[str, Any]]  # the seeds of one search with one number of plans


def searches_table(records: Sequence[Mapping[str, Any]], against: str) -> str:
    """Median and range over the seeds of each search and number of plans, the best on other images first.

    Args:
        records: one for each search, number of plans and seed, with "search", "evaluations", "value" (on the images
            that plans were judged on) and, on other images, "other_kl", "other_kl_error", "other_accuracy" (% or None)
            and "other_values" (the KL of each image).
        against: the search whose plan of the fewest evaluations the others are compared with, by `paired_gain`; nothing
            is compared where no record is of it.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["search"], record["evaluations"]), []).append(record)
    middles = {key: statistics.median(record["other_kl"] for record in group) for key, group in groups.items()}
    first = min((key for key in groups if key[0] == against), key=lambda key: key[1], default=None)
    rows = []
    for key in sorted(groups, key=lambda key: middles[key]):
        name, most = key
        of = {field: [record[field] for record in groups[key]] for field in ("value", "other_kl", "other_accuracy")}
        accuracy = "–" if None in of["other_accuracy"] else _spread(of["other_accuracy"], ".2f")
        error = statistics.median(record["other_kl_error"] for record in groups[key])
        gap: tuple[str, ...] = ()
        if first is not None:
            gap = ("–",) if key == first else (_shown(*paired_gain(groups[key], groups[first])),)
        plans = "1" if name.startswith(OPTIMUM) else str(most)
        spreads = (_spread(of["value"], ".4f"), _spread(of["other_kl"], ".4f"), f"{error:.4f}")
        rows.append((name, plans, str(len(groups[key])), *spreads, *gap, accuracy))
    compared = () if first is None else (f"− {against}",)
    columns = ("search", "plans", "seeds", "searched on", "KL on other images", "± of one", *compared, "accuracy %")
    return markdown(columns, rows)


def paired_gain(group: _Group, reference: _Group) -> tuple[float, float]:
    """Mean KL of a search's plans minus the reference's on the same images, and half its 95 % interval.

    With d_si the difference of seed s on image i, h² = (t_(N−1) · σ_i(mean_s d))²/N + (t_(S−1) · σ_s(mean_i d))²/S:
    both images and seeds could have been others. A single seed, as of a search without chance, has no second term.

    Args:
        group, reference: records with "other_values" of the same images.

    Raises:
        ValueError: the images differ in number, or are fewer than two.
    """
    values = np.array([record["other_values"] for record in group], dtype=float)  # (S, N)
    theirs = np.array([record["other_values"] for record in reference], dtype=float).mean(0)
    if values.shape[1:] != theirs.shape or len(theirs) < 2:
        raise ValueError(
            f"plans were measured on {values.shape[1]} and {len(theirs)} images: two or more of the same are needed"
        )
    gaps = values - theirs
    square = half_width(gaps.mean(0)) ** 2
    if len(gaps) > 1:
        square += half_width(gaps.mean(1)) ** 2
    return float(gaps.mean()), math.sqrt(square)


def _shown(gap: float, half: float) -> str:
    return f"{signed(gap, 4)} ± {half:.4f}"


def _spread(values: Sequence[float], form: str) -> str:
    """Median, and least … largest where there are several."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} … {max(values):{form}})"
