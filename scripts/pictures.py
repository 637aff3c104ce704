"""Accuracy against size as a picture for README and docs, drawn by the code of the report pages.

python scripts/pictures.py docs/results/a.json outputs/runs/B --images 10000 --out docs/figures/accuracy_size.png

Records and run folders; one panel per network. Needs a Chromium and `pip install ".[browser]"`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hawq.experiment.sweep import read_report
from hawq.report import Entry, Recorded, read_result, write_table

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WIDTH = 980


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN_OR_RECORD")
    parser.add_argument("--images", type=int, help="test images of records that do not say how many there were")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    given = parser.parse_args()
    try:
        print(f"drawn: {draw(given.sources, given.images, given.out)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(sources: list[Path], images: int | None, out: Path) -> Path:
    """The scatter of the table page over these sources as a PNG, and returns `out`.

    Raises ValueError or OSError for a source that is neither, or where no browser is installed.
    """
    runs = [path for path in sources if path.is_dir()]
    for run in runs:
        read_report(run)
    records = [_with_images(read_result(path), images) for path in sources if not path.is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "table.html"
        write_table(page, [Entry(run.name, run) for run in runs], "Accuracy against size", records)
        out.parent.mkdir(parents=True, exist_ok=True)
        photograph(page, "#picture", out)
    return out


def _with_images(recorded: Recorded, images: int | None) -> Recorded:
    """The record with the number of test images wherever it does not state one."""
    runs = tuple(
        replace(
            run,
            rows=tuple(
                replace(row, result=replace(row.result, num_images=row.result.num_images or images)) for row in run.rows
            ),
        )
        for run in recorded.runs
    )
    return replace(recorded, runs=runs)


def photograph(page: Path, selector: str, out: Path) -> None:
    """One part of a page as a PNG at twice its size. Raises FileNotFoundError where no Chromium is installed."""
    from playwright.sync_api import sync_playwright

    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise FileNotFoundError("no Chromium is installed: apt-get install chromium, or the like")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = opened.new_page(viewport={"width": _WIDTH, "height": 800}, device_scale_factor=2, color_scheme="light")
        shown.goto(page.absolute().as_uri())
        shown.wait_for_selector("body[data-ready]")
        shown.locator(selector).screenshot(path=str(out))
        opened.close()


if __name__ == "__main__":
    main()
