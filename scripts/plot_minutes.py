"""Accuracy against minutes: what calibration, reconstruction and training of several lengths buy.

python scripts/plot_minutes.py "W4A4:calibrated=docs/results/a.json" "W4A4:BRECQ=outputs/runs/B" --out minutes.png

SERIES:LABEL=RUN_OR_RECORD; several with the same series and label are seeds. A point is the network of the run's plan,
its minutes are all that the run took, analysis included.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from hawq.experiment.sweep import read_report
from hawq.report import read_result, recorded_rows
from hawq.report.minutes_figure import Paid, minutes_figure


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SERIES:LABEL=RUN_OR_RECORD")
    parser.add_argument("--out", type=Path, required=True, help="a .png or .svg")
    given = parser.parse_args()
    try:
        print(f"drawn: {draw(given.sources, given.out)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(sources: list[str], out: Path) -> Path:
    """Draws one line per series into `out`, and returns it.

    Raises ValueError or OSError for sources that cannot be read or share no float network.
    """
    seeds: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for source in sources:
        name, equals, path = source.partition("=")
        series, colon, label = name.partition(":")
        if not (equals and colon and series.strip() and label.strip()):
            raise ValueError(f"{source!r} has no series or label: give SERIES:LABEL=RUN_OR_RECORD")
        seeds[series.strip(), label.strip()] += read(Path(path))
    lines: dict[str, list[Paid]] = defaultdict(list)
    for (series, label), found in seeds.items():
        accuracies, minutes, parents = zip(*found, strict=True)
        if len({round(parent, 2) for parent in parents}) > 1:
            raise ValueError(f"{series}, {label} has several float networks: give runs that share one")
        lines[series].append(Paid(label, accuracies, minutes, parents[0]))
    return minutes_figure(lines, out)


def read(path: Path) -> list[tuple[float, float, float]]:
    """Accuracy, minutes and accuracy of the float network for each seed.

    Raises ValueError or OSError for a path that is neither the folder of a finished run nor a record.
    """
    if path.is_dir():
        report = read_report(path)
        first, *_, last = recorded_rows(path, report)
        minutes = sum(stage.seconds for stage in report.stages) / 60
        return [(last.result.accuracy, minutes, first.result.accuracy)]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give run folders or records of docs/results")
    return [
        (run.rows[-1].result.accuracy, 60 * run.hours, run.rows[0].result.accuracy) for run in read_result(path).runs
    ]


if __name__ == "__main__":
    main()
