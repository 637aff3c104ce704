"""scripts/pictures.py: records and runs as a picture, each network with its interval."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import chromium
from PIL import Image
from run_folders import made_run
from runs import REPOSITORY, page_data, run_script

from hawq.records import ResultRow
from hawq.report import Entry, write_table
from hawq.report.lines import Network, of_runs

RECORDS = sorted((REPOSITORY / "docs" / "results").glob("ablation_[dh]*.json"))


def test_records_are_drawn_beside_runs(tmp_path: Path) -> None:
    """The picture of the README: two panels, light, wide enough for a page of 980 pixels."""
    chromium()
    run, out = made_run(tmp_path / "run"), tmp_path / "picture.png"
    panels = ("--panel", "ResNet20, CIFAR-10", *RECORDS, "--panel", "Toy", run)
    assert run_script("pictures.py", *panels, "--images", 10_000, "--out", out) is None
    with Image.open(out) as drawn:
        assert drawn.width >= 1500 and drawn.height < drawn.width
        left, right = (drawn.crop((side, 0, side + drawn.width // 2, drawn.height)) for side in (0, drawn.width // 2))
        for half in (left, right):
            colors = {color for _, color in half.convert("RGB").getcolors(10**6)}
            assert half.getpixel((half.width - 1, half.height - 1))[:3] == (255, 255, 255)  # a light ground
            assert min(max(color) for color in colors) < 60  # letters
            assert any(blue > red + 100 for red, _, blue in colors)  # the mark of a mixed plan
    for wrong, said in (((tmp_path / "absent",), "absent"), ((), "nothing to draw")):
        message = run_script("pictures.py", *wrong, "--out", out)
        assert message is not None and message.startswith("error: ") and said in message


def test_panels_come_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    entries = [Entry(name, made_run(tmp_path / name), network=name) for name in ("a", "b", "c")]
    page = write_table(tmp_path / "table.html", entries, "title", by="kind", networks=["c", "a"])
    found = page_data(page)
    assert list(dict.fromkeys(line["network"] for line in found["lines"])) == ["c", "a", "b"]
    assert {line["kind"] for line in found["lines"]} == {"float", "direct", "mixed"}
    assert "<h1>3 runs of 3 networks</h1>" in page.read_text(encoding="utf-8")
    assert [line.network for line in of_runs(entries)] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


@pytest.mark.parametrize(
    ("method", "bits", "kind"),
    [
        ("float", "32", "float"),
        ("direct uniform", "2 MP", "direct"),
        ("direct uniform", "8", "uniform"),
        ("HAWQ", "4", "uniform"),
        ("HAWQ", "2 MP", "mixed"),
        ("HAWQ (published bits)", "2 MP", "mixed"),
        ("given", "32 MP", "mixed"),
    ],
)
def test_kinds_follow_the_bits(method: str, bits: str, kind: str) -> None:
    row = ResultRow(method, bits, "4", 90.0, 8.0, 1000, 8.0, 1.0)
    assert Network(row.method, row.weight_bits, row.size_bytes, row.w_comp).kind == kind
