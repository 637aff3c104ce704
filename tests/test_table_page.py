"""table.html: seeds folded, failures shown, sorted and filtered in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from browsing import DESKTOP, PHONE, axe_violations, browser, opened
from run_folders import IMAGES, made_run, measured, sensitivity_of
from runs import read_json, run_script

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


def lines_of(page: Any) -> list[dict[str, str]]:
    """The visible lines, each as column → text."""
    columns = [text.strip(" ↑↓") for text in page.locator("#lines th").all_inner_texts()]
    rows = page.locator("#lines tbody tr:visible").all()
    return [dict(zip(columns, row.locator("td").all_inner_texts(), strict=True)) for row in rows]


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_opens_from_disk_and_is_accessible(chromium: Any, sweep: Path, size: tuple[int, int], scheme: str) -> None:
    with opened(chromium, sweep / "table.html", size, scheme) as found:
        assert found.complaints == [] and axe_violations(found.page) == []
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_lines_are_folded_sorted_and_filtered(chromium: Any, sweep: Path) -> None:
    with opened(chromium, sweep / "table.html") as found:
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


def test_front_holds_what_nothing_beats(chromium: Any, sweep: Path) -> None:
    with opened(chromium, sweep / "table.html") as found:
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


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that stopped after the allocation: three budgets, one of them twice."""
    folder, entries = tmp_path_factory.mktemp("plans"), []
    for target, seed in ((8.0, 0), (10.0, 0), (10.0, 1), (13.0, 0)):
        run = made_run(folder / f"job-{target:g}-{seed}", seed=seed, target=target, sensitivity=sensitivity_of(seed))
        (run / "report.json").unlink()
        write_page(run)
        command = f"python train.py stages=[allocation] bits.target={target:g} seed={seed}"
        entries.append(Entry(f"bits.target={target:g} seed={seed}", run, command=command))
    write_table(folder / "table.html", entries, "Plans")
    return folder


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_plans_that_were_not_trained_are_shown_by_what_is_predicted(
    chromium: Any, plans: Path, size: tuple[int, int], scheme: str
) -> None:
    stored = {path.parent.name: read_json(path) for path in plans.glob("job-*/plan.json")}
    with opened(chromium, plans / "table.html", size, scheme) as found:
        page = found.page
        assert found.complaints == [] and axe_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        lines = lines_of(page)
        assert [line["seeds"] for line in lines] == ["1", "2", "1"] and "accuracy %" not in lines[0]
        shown = page.evaluate("DATA.lines.map((line) => [line.predicted, line.bytes, line.bops])")
        for line, names in zip(shown, (["job-8-0"], ["job-10-0", "job-10-1"], ["job-13-0"]), strict=True):
            costs = [stored[name]["cost"] for name in names]
            assert line[0] == pytest.approx(mean(stored[name]["objective"] for name in names))
            assert line[1] == pytest.approx(mean(cost["packed_bytes"] for cost in costs))
            assert line[2] == costs[0]["bops"]
        assert page.locator("#lines [data-copy]").first.get_attribute("data-copy").endswith("bits.target=8 seed=0")
        for axis in ("bytes", "bops", "w_comp"):
            page.locator("#axis").select_option(axis)
            assert page.locator("#scatter svg[role=img] path[transform]").count() >= 3  # a mark for each line
        assert found.complaints == [] and "predicted increase" in page.locator("#scatter svg").first.text_content()


def test_what_is_trained_is_also_shown_by_what_was_predicted(
    chromium: Any, sweep: Path, plans: Path, tmp_path: Path
) -> None:
    """Trained networks and plans in one table: each is drawn where its figure is known."""
    entries = [Entry(folder.name, folder) for folder in (sweep / "job-10-0", sweep / "job-13-0", plans / "job-8-0")]
    write_table(tmp_path / "table.html", entries, "Both")
    with opened(chromium, tmp_path / "table.html") as found:
        alternative = "document.querySelector('#scatter svg').getAttribute('aria-label')"
        lines = found.page.evaluate("DATA.lines")
        for merit, word in (("accuracy", "Accuracy"), ("predicted", "Predicted")):
            found.page.locator("#merit").select_option(merit)
            known = sum(line[merit] is not None for line in lines)
            text = found.page.evaluate(alternative)
            assert text.startswith(word) and f"{known} networks" in text and 0 < known < len(lines)
        assert found.complaints == []


def test_runs_without_a_plan_make_no_scatter(chromium: Any, plans: Path, tmp_path: Path) -> None:
    for name in ("sensitivity.json", "config.yaml"):
        (tmp_path / name).write_bytes((plans / "job-8-0" / name).read_bytes())
    write_table(tmp_path / "table.html", [Entry("stages=[analysis]", tmp_path)], "Analysed")
    with opened(chromium, tmp_path / "table.html") as found:
        assert found.complaints == [] and axe_violations(found.page) == []
        assert found.page.locator("h1").inner_text() == "1 run" and found.page.locator("section").count() == 0


def test_intervals_do_not_cover_each_other(chromium: Any, sweep: Path, tmp_path: Path) -> None:
    """Networks of one size stand side by side in the order of their sizes, as close to their places as that allows."""
    write_table(tmp_path / "table.html", [Entry("one", sweep / "job-10-0")], "One")
    with opened(chromium, tmp_path / "table.html") as found:
        for positions in ([5, 5, 5], [1, 2, 3, 40], [0, 100, 101, 200], [7]):
            moved = found.page.evaluate("([all, gap]) => apart(all, gap)", [positions, 10])
            assert all(b - a >= 10 - 1e-9 for a, b in pairwise(moved))
            assert sum(moved) == pytest.approx(sum(positions))
            far = [abs(a - b) > 40 for a, b in pairwise(positions)]
            if far and all(far):
                assert moved == positions
        assert found.page.evaluate("apart([0, 100, 101, 200], 10)") == pytest.approx([0, 95.5, 105.5, 200])


def test_runs_are_compared_by_hand(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [shutil.copytree(sweep / name, tmp_path / name) for name in ("job-10-0", "job-13-0")]
    assert run_script("compare_runs.py", *folders) is None
    shown = capsys.readouterr().out
    assert f"Table: {tmp_path / 'table.html'}" in shown and "| HAWQ" in shown
    text = (tmp_path / "table.html").read_text(encoding="utf-8")
    for folder in folders:
        assert f'href="{folder.name}/report.html"' in text and read_json(folder / "report.json")["command"] in text
