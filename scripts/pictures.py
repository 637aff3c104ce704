"""Accuracy against size as a picture for README and docs, drawn by the code of the report pages.

python scripts/pictures.py docs/results/a.json outputs/runs/B --images 10000 --out docs/figures/accuracy_size.png
python scripts/pictures.py --panel "ResNet20, CIFAR-10" docs/results/a.json docs/results/b.json \
    --panel "EfficientNet-Lite0, ImageNet" outputs/runs/C outputs/runs/D --images 10000 --out picture.png

Records and run folders, one panel per network or as --panel says. Needs a Chromium and `pip install ".[browser]"`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hawq.experiment.sweep import read_report
from hawq.report import Entry, Recorded, read_result, write_table

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WIDTH, _WIDER = 880, 1180  # CSS pixels, for up to two panels and for more


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="RUN_OR_RECORD")
    parser.add_argument(
        "--panel", nargs="+", action="append", default=[], metavar=("TITLE", "RUN_OR_RECORD"), help="one panel of these"
    )
    parser.add_argument("--images", type=int, help="test images of records that do not say how many there were")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    given = parser.parse_args()
    try:
        panels = {title: sources for title, *sources in given.panel}
        print(f"drawn: {draw(given.sources, panels, given.images, given.out)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(sources: Sequence[str], panels: dict[str, list[str]], images: int | None, out: Path) -> Path:
    """The scatter of the table page over these sources as a PNG, and returns `out`.

    Args:
        sources: records and run folders, each in the panel of its network.
        panels: title → records and run folders that are drawn in one panel.
        images: test images of records that do not say how many there were.
        out: the picture.

    Raises:
        ValueError: a source that is neither a record nor the folder of a finished run, or none at all.
        OSError: a source that is not there, or no browser.
    """
    titled: list[tuple[str | None, Path]] = [(None, Path(source)) for source in sources]
    titled += [(title, Path(source)) for title, group in panels.items() for source in group]
    if not titled:
        raise ValueError("there is nothing to draw: give records (docs/results/*.json) or run folders")
    entries: list[Entry] = []
    records: list[Recorded] = []
    for title, source in titled:
        if source.is_dir():
            read_report(source)
            entries.append(Entry(source.name, source, network=title))
        else:
            found = _with_images(read_result(source), images)
            records.append(replace(found, network=title) if title else found)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "table.html"
        write_table(page, entries, "Accuracy against size", records, by="kind", networks=list(panels))
        out.parent.mkdir(parents=True, exist_ok=True)
        networks = {*panels, *(record.network for record in records), *(entry.network for entry in entries)}
        photograph(page, "#picture", out, _WIDER if len(networks) > 2 else _WIDTH)
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


def photograph(page: Path, selector: str, out: Path, width: int = _WIDTH) -> None:
    """One part of a page, shown `width` pixels wide, as a PNG at twice its size.

    Raises FileNotFoundError where no Chromium is installed.
    """
    from playwright.sync_api import sync_playwright

    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise FileNotFoundError("no Chromium is installed: apt-get install chromium, or the like")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = opened.new_page(viewport={"width": width, "height": 800}, device_scale_factor=2, color_scheme="light")
        shown.goto(page.absolute().as_uri())
        shown.wait_for_selector("body[data-ready]")
        shown.add_style_tag(content=":root { --paper: #fff } section { border: 0; box-shadow: none }")
        shown.locator(selector).screenshot(path=str(out))
        opened.close()


if __name__ == "__main__":
    main()
