"""The data of the page's charts, JSON-ready: results with intervals, frontier, scores, training, landscape."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from hawq.allocation.frontier import FrontierPoint
from hawq.records import WEIGHTS, ResultRow
from hawq.report.blocks_view import formula
from hawq.report.intervals import wilson
from hawq.report.results import phase_borders
from hawq.report.run_folder import RunFolder
from hawq.report.tables import size_label
from hawq.report.wording import number

_MOST_POINTS = 300  # of a line
_LOSSES = ("kl", "quadratic")  # scores whose figures are increases of a loss, not only in proportion to one
UNITS = {
    "w_comp": "W-Comp",
    "bytes": "bytes",
    "average_bits": "mean weight bits",
    "bops": "BOPS",
    "a_comp": "A-Comp",
    "peak_activation_bytes": "bytes of activations",
    "latency_ms": "ms",
}


def results(run: RunFolder) -> list[dict[str, Any]]:
    """One row per network: accuracy with Wilson's interval, size, difference and agreement to the float network."""
    return [] if run.report is None else [result(row) for row in run.report.rows]


def result(row: ResultRow) -> dict[str, Any]:
    """One network as the charts and tables of a page take it."""
    low, high = wilson(row.accuracy, row.num_images) if row.num_images else (None, None)
    difference = row.difference
    return {
        "method": row.method,
        "accuracy": row.accuracy,
        "low": low,
        "high": high,
        "bytes": row.size_bytes,
        "size": size_label(row.size_bytes),
        "w_comp": row.w_comp,
        "images": row.num_images,
        "difference": difference and [difference.value, difference.low, difference.high],
        "agreement": row.agreement,
    }


def frontier(run: RunFolder) -> dict[str, Any] | None:
    """Plans by rising size, each with its bits, cost and the command that makes it; None without a frontier."""
    front, plan = run.frontier, run.plan
    if front is None or plan is None or not front.points or not all(point.precisions for point in front.points):
        return None
    in_bytes = all(point.cost.packed_bytes is not None for point in front.points)
    points = [_point(run, point, in_bytes) for point in front.points]
    points.sort(key=lambda point: point["bytes"])
    bits = [list(plan.weight_bits().values())]
    here = _here(run, in_bytes)
    return {
        "points": points,
        "here": here,
        "current": bits[0],
        "unit": UNITS.get(front.unit, front.unit),
        "x": "size of the packed file" if in_bytes else "bytes of the weights",
        "what": "A packed file" if in_bytes else "Weights",
        "is_loss": front.score in _LOSSES,
        "y": f"Σ {formula(front.score)}",
        "smaller": next((i for i in reversed(range(len(points))) if points[i]["bytes"] < here["bytes"]), None),
        "larger": next((i for i, point in enumerate(points) if point["bytes"] > here["bytes"]), None),
    }


def _here(run: RunFolder, in_bytes: bool) -> dict[str, Any]:
    """The plan of this run, as a point beside the frontier."""
    assert run.plan is not None
    cost = run.plan.cost
    size = cost.packed_bytes if in_bytes and cost.packed_bytes is not None else cost.weight_bytes
    return {"bytes": size, "size": size_label(size), "objective": run.plan.objective, "method": run.plan.method}


def _point(run: RunFolder, point: FrontierPoint, in_bytes: bool) -> dict[str, Any]:
    assert run.frontier is not None
    cost = point.cost
    size = cost.packed_bytes if in_bytes and cost.packed_bytes is not None else cost.weight_bytes
    facts = [
        ("Size", size_label(size)),
        ("W-Comp", f"{cost.w_comp:.2f}×"),
        ("Mean weight bits", f"{cost.average_bits:.2f}"),
        ("Σ predicted", number(point.objective)),
    ]
    if cost.bops is not None:
        facts.append(("BOPS", f"{cost.bops / 1e9:.3g} G"))
    return {
        "bytes": size,
        "size": size_label(size),
        "objective": point.objective,
        "target": f"{UNITS.get(run.frontier.unit, run.frontier.unit)} {number(point.target)}",
        "bits": [precision.weight_bits for precision in point.precisions.values()],
        "facts": facts,
        "command": with_override(run.command, "bits.target", point.target),
    }


def with_override(command: str, key: str, value: Any) -> str:
    """A command line with `key=value` in place of what it gave for that key."""
    words = shlex.split(command) or ["python", "train.py"]
    text = repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    kept = [word for word in words if not word.startswith(f"{key}=")]
    return shlex.join([*kept, f"{key}={text}"])


def validation(run: RunFolder) -> dict[str, Any] | None:
    """Each score against the measured increase of the loss; None where `validate` did not run."""
    if run.validation is None:
        return None
    truth = {(one.block, one.bits): one for one in run.validation.truth.increases if one.kind == WEIGHTS}
    whole = {one.score: one for one in run.validation.correlations if one.bits is None and one.kind == WEIGHTS}
    scores: list[dict[str, Any]] = []
    for score in run.validation.scores:
        if score.kind != WEIGHTS:
            continue
        points = [
            {"block": block, "bits": bits, "x": omega, "y": truth[block, bits].loss, "e": truth[block, bits].loss_error}
            for block, row in score.omegas.items()
            for bits, omega in row.items()
            if (block, bits) in truth
        ]
        found = whole.get(score.name)
        scores.append(
            {
                "name": score.name,
                "rho": found.spearman if found else None,
                "interval": found.interval if found else None,
                "seconds": score.seconds,
                "points": points,
            }
        )
    scores.sort(key=lambda one: -(one["rho"] if one["rho"] is not None else -2.0))
    return {"scores": scores, "images": run.validation.truth.num_samples} if scores else None


def training(run: RunFolder) -> dict[str, Any] | None:
    """Accuracy and loss over the steps of fine-tuning, with the borders of phases; None without any."""
    lines = []
    for method, history in run.histories.items():
        lines.append(
            {
                "method": method,
                "accuracy": [[row["step"], row["accuracy"]] for row in history if "accuracy" in row],
                "loss": [[row["step"], row["loss"]] for row in thinned(history)],
            }
        )
    if not lines:
        return None
    parent = run.report.rows[0].accuracy if run.report else None
    borders = phase_borders(next(iter(run.histories.values())))
    images = run.config.get("finetune", {}).get("eval_samples")
    return {"lines": lines, "float": parent, "borders": borders, "images": images}


def thinned(rows: Sequence[Any]) -> Sequence[Any]:
    """At most a few hundred rows, evenly spaced, with the first and the last."""
    if len(rows) <= _MOST_POINTS:
        return rows
    return [rows[round(place * (len(rows) - 1) / (_MOST_POINTS - 1))] for place in range(_MOST_POINTS)]
