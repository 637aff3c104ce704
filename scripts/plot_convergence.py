"""Accuracy over fine-tuning steps of several runs, as in figures 4 and 5 of HAWQ.

python scripts/plot_convergence.py descending=outputs/runs/A ascending=docs/results/b.json --out docs/figures/order.png

Run folders or records, each with a label, by default its file name; several with the same label are seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hawq.experiment.sweep import read_report
from hawq.report import RecordedRow, convergence_figure, read_result, recorded_rows


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="[LABEL=]RUN_OR_RECORD")
    parser.add_argument("--out", type=Path, required=True, help="a .png or .svg")
    given = parser.parse_args()
    try:
        print(f"drawn: {draw(given.sources, given.out)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(sources: list[str], out: Path) -> Path:
    """Draws one line per source, the network of its plan, into `out`, and returns it.

    Raises ValueError or OSError for sources that cannot share a figure.
    """
    lines: dict[str, list[RecordedRow]] = {}
    parents, images = set(), set()
    for source in sources:
        label, _, path = source.rpartition("=")
        rows, curve_images = read(Path(path))
        for first, *_, last in rows:
            if len(last.curve) < 2:
                raise ValueError(
                    f"{path} has no curve: give a run or record that was fine-tuned and measured during it"
                )
            lines.setdefault(label or Path(path).stem, []).append(last)
            parents.add(round(first.result.accuracy, 2))
        images.add(curve_images)
    for found, what in ((parents, "float networks of accuracy"), (images, "numbers of test images")):
        if len(found) > 1:
            raise ValueError(f"the curves are of different {what} {sorted(map(str, found))}: give runs that share them")
    return convergence_figure(lines, parents.pop(), images.pop(), out)


def read(path: Path) -> tuple[list[tuple[RecordedRow, ...]], int | None]:
    """Rows of each seed, and the number of test images that their curves were measured on (None for all).

    Raises ValueError or OSError for a path that is neither a run folder nor a record.
    """
    if path.is_dir():
        report = read_report(path)
        return [recorded_rows(path, report)], report.config["finetune"]["eval_samples"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give run folders or records of docs/results")
    recorded = read_result(path)
    return [run.rows for run in recorded.runs], recorded.curve_images


if __name__ == "__main__":
    main()
