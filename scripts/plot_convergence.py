"""Accuracy over fine-tuning steps of several runs, as in figures 4 and 5 of HAWQ.

python scripts/plot_convergence.py descending=outputs/runs/A ascending=docs/results/b.json --out docs/figures/order.png

Run folders or records, each with a label, by default its file name; several with the same label are seeds.
"""

from __future__ import annotations

from pathlib import Path

from hawq.experiment.drawing import command_line
from hawq.experiment.recording import read_runs
from hawq.report import RecordedRow, convergence_figure


def draw(sources: list[str], out: Path) -> Path:
    """Draws one line per source, the network of its plan, into `out`, and returns it.

    Raises ValueError or OSError for sources that cannot share a figure.
    """
    lines: dict[str, list[RecordedRow]] = {}
    parents, images = set(), set()
    for source in sources:
        label, _, path = source.rpartition("=")
        runs, curve_images = read_runs(Path(path))
        for first, *_, last in (run.rows for run in runs):
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


if __name__ == "__main__":
    command_line(__doc__, "[LABEL=]RUN_OR_RECORD", draw)
