"""table.html: seeds folded, failures shown, sorted and filtered in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from browsing import DESKTOP, PHONE, axe_violations, browser, opened
from browsing import chromium as chromium_of_this_system
from PIL import Image
from run_folders import IMAGES, made_run, measured
from runs import REPOSITORY, read_json, run_script

from hawq.report import Entry, write_page, write_table

WRONG = {(10.0, 0): 30, (10.0, 1): 34, (10.0, 2): 38, (13.0, 0): 60}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two budgets, one of them with three seeds, and a job that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    entries = []
    for (target, seed), wrong in WRONG.items():
        run = made_run(folder / f"job-{target:g}-{seed}", seed=seed, target=target, tuned=measured(wrong, 10 + seed))
        write_page(run)
        entries.append(Entry(f"bits.target={target:g} seed={seed}", run))
    entries.append(Entry("bits.target=15 seed=0", folder / "job-15", "failed", "the loss <is> not finite"))
    write_table(folder / "table.html", entries, "A sweep")
    return folder


def lines_of(page: Any) -> list[dict[str, str]]:
    """The visible lines, each as column → text."""
    columns = [text.strip(" ↑↓") for text in page.locator("#lines th").all_inner_texts()]
    rows = page.locator("#lines tbody tr:visible").all()
    return [dict(zip(columns, row.locator("td").all_inner_texts(), strict=True)) for row in rows]


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_opens_from_disk_and_is_accessible(sweep: Path, size: tuple[int, int], scheme: str) -> None:
    with browser() as chromium, opened(chromium, sweep / "table.html", size, scheme) as found:
        assert found.complaints == [] and axe_violations(found.page) == []
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_lines_are_folded_sorted_and_filtered(sweep: Path) -> None:
    with browser() as chromium, opened(chromium, sweep / "table.html") as found:
        page = found.page
        lines = lines_of(page)
        assert [line["method"].split()[0] for line in lines] == ["float", "direct", "HAWQ", "direct", "HAWQ"]
        accuracies = [100 * (1 - wrong / IMAGES) for (target, _), wrong in WRONG.items() if target == 10.0]
        folded = next(
            line for line in lines if "bits.target=10" in line["options"] and line["method"].startswith("HAWQ")
        )
        assert folded["accuracy %"] == f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}" and folded["seeds"] == "3"
        assert folded["reports by seed"] == "0, 1, 2" and "seed=" not in folded["options"]
        failed = page.locator("#failed").inner_text()
        assert "bits.target=15 seed=0: failed, the loss <is> not finite" in failed
        accuracy = page.locator("#lines th[data-key=accuracy]")
        for order, sign in (("ascending", 1), ("descending", -1)):
            accuracy.locator("button").click()
            assert accuracy.get_attribute("aria-sort") == order
            values = [float(line["accuracy %"].split()[0]) for line in lines_of(page)]
            assert values == sorted(values, key=lambda value: sign * value)
        page.locator("#filter").fill("hawq target=13")
        assert [line["options"] for line in lines_of(page)] == ["bits.target=13"]
        assert page.locator("#shown").inner_text() == "1 of 5"
        page.locator("#filter").fill("")
        page.locator("#lines tbody a").first.click()
        page.wait_for_selector("body[data-ready]")
        assert page.url.endswith("/report.html") and found.complaints == []


def test_front_holds_what_nothing_beats(sweep: Path) -> None:
    with browser() as chromium, opened(chromium, sweep / "table.html") as found:
        lines = found.page.evaluate("DATA.lines")
    for line in lines:
        beaten = [
            other
            for other in lines
            if other["bytes"] <= line["bytes"]
            and other["accuracy"] >= line["accuracy"]
            and (other["bytes"] < line["bytes"] or other["accuracy"] > line["accuracy"])
        ]
        assert line["front"] == (not beaten)
    assert 0 < sum(line["front"] for line in lines) < len(lines)


def test_runs_are_compared_by_hand(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [shutil.copytree(sweep / name, tmp_path / name) for name in ("job-10-0", "job-13-0")]
    assert run_script("compare_runs.py", *folders) is None
    shown = capsys.readouterr().out
    assert f"Table: {tmp_path / 'table.html'}" in shown and "| HAWQ" in shown
    text = (tmp_path / "table.html").read_text(encoding="utf-8")
    for folder in folders:
        assert f'href="{folder.name}/report.html"' in text and read_json(folder / "report.json")["command"] in text


def test_records_are_drawn_beside_runs(sweep: Path, tmp_path: Path) -> None:
    """The picture of the README: each network of a record with its interval, shared ones once."""
    chromium_of_this_system()
    records = sorted((REPOSITORY / "docs" / "results").glob("ablation_[dh]*.json"))
    out = tmp_path / "picture.png"
    assert run_script("pictures.py", *records, sweep / "job-13-0", "--images", 10_000, "--out", out) is None
    with Image.open(out) as drawn:
        assert drawn.width > 1000 and len(set(drawn.convert("L").resize((50, 50)).tobytes())) > 5
    message = run_script("pictures.py", tmp_path / "absent", "--out", out)
    assert message is not None and message.startswith("error: ") and "absent" in message
