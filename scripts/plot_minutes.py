"""Accuracy against minutes: what calibration, reconstruction and training of several lengths buy.

python scripts/plot_minutes.py "W4A4:calibrated=docs/results/a.json" "W4A4:BRECQ=outputs/runs/B" --out minutes.png

SERIES:LABEL=RUN_OR_RECORD; several with the same series and label are seeds. A point is the network of the run's plan,
its minutes are all that the run took, analysis included.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from hawq.experiment.drawing import command_line
from hawq.experiment.recording import read_runs
from hawq.report import RecordedRun
from hawq.report.minutes_figure import Paid, minutes_figure


def draw(sources: list[str], out: Path) -> Path:
    """Draws one line per series into `out`, and returns it.

    Raises ValueError or OSError for sources that cannot be read or share no float network.
    """
    seeds: dict[str, dict[str, list[RecordedRun]]] = defaultdict(lambda: defaultdict(list))
    for source in sources:
        name, equals, path = source.partition("=")
        series, colon, label = name.partition(":")
        if not (equals and colon and series.strip() and label.strip()):
            raise ValueError(f"{source!r} has no series or label: give SERIES:LABEL=RUN_OR_RECORD")
        seeds[series.strip()][label.strip()] += read_runs(Path(path))[0]
    lines = {series: [paid(series, label, runs) for label, runs in labels.items()] for series, labels in seeds.items()}
    return minutes_figure(lines, out)


def paid(series: str, label: str, runs: list[RecordedRun]) -> Paid:
    """What the networks of the runs' plans end with, and took. Raises ValueError for several float networks."""
    parents = [run.rows[0].result.accuracy for run in runs]
    if len({round(parent, 2) for parent in parents}) > 1:
        raise ValueError(f"{series}, {label} has several float networks: give runs that share one")
    accuracies, hours = zip(*((run.rows[-1].result.accuracy, run.hours) for run in runs), strict=True)
    return Paid(label, accuracies, tuple(60 * one for one in hours), parents[0])


if __name__ == "__main__":
    command_line(__doc__, "SERIES:LABEL=RUN_OR_RECORD", draw)
