"""report.html in a real browser: from disk, without a network, by mouse and keyboard, on a desk and on a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import DESKTOP, PHONE, axe_violations, browser, opened
from run_folders import made_run, measured, renamed, sensitivity_of
from runs import read_json

from hawq.records import Judgement, Searched
from hawq.report import agreement, write_page

LARGEST, SLOWEST_SECONDS = 5 * 2**20, 2.0
LEFT_MARGIN = 62  # of the frontier's chart, where its smallest plan is


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything that a page can show, and its page."""
    made = made_run(tmp_path_factory.mktemp("page") / "run")
    write_page(made)
    return made


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


def test_page_is_small_and_needs_nothing_else(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) <= LARGEST
    assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", text) == []
    assert text.count("observablehq/plot v") == text.count("https://d3js.org v") == 1


def test_links_lead_to_files_of_the_folder(report: Path) -> None:
    links = set(re.findall(r'<a [^>]*href="([^"#]+)"', report.read_text(encoding="utf-8")))
    assert {"report.json", "plan.json", "sensitivity.json", "frontier.json", "validation.json"} <= links
    assert [link for link in links if not (report.parent / link).is_file()] == []


def test_every_number_in_a_table_is_a_link_to_its_file(report: Path) -> None:
    cells = re.findall(r'<td class="num">(.*?)</td>', report.read_text(encoding="utf-8"), re.DOTALL)
    assert len(cells) > 100
    assert [cell for cell in cells if re.search(r"\d", cell) and '<a class="from" href="' not in cell] == []


def test_page_is_the_same_for_the_same_files(folder: Path, report: Path) -> None:
    before = report.read_bytes()
    assert write_page(folder).read_bytes() == before


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_opens_from_disk_and_is_accessible(chromium: Any, report: Path, size: tuple[int, int], scheme: str) -> None:
    with opened(chromium, report, size, scheme) as found:
        page = found.page
        assert (
            found.complaints == [] and [url for url in found.requests if not url.startswith(("file:", "data:"))] == []
        )
        assert 0 < found.cpu_seconds() < SLOWEST_SECONDS
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert axe_violations(page) == []
        assert page.locator(".chart svg[role=img][aria-label]").count() >= 8


def test_hover_and_keys_tell_about_a_block(chromium: Any, folder: Path, report: Path) -> None:
    plan = read_json(folder / "plan.json")["precisions"]
    names = list(plan)
    with opened(chromium, report) as found:
        bars, detail = found.page.locator("#strip .bar"), found.page.locator("#detail")
        assert bars.count() == len(plan)
        for place, name in enumerate(names):
            bars.nth(place).hover()
            text = detail.inner_text()
            assert text.startswith(name) and f"{plan[name]['weight_bits']}-bit weights" in text
            assert "Predicted increase" in text and "MACs" in text and "±" in text
        bars.nth(0).focus()
        for key, name in (("ArrowRight", names[1]), ("End", names[-1]), ("ArrowLeft", names[-2]), ("Home", names[0])):
            found.page.keyboard.press(key)
            assert detail.inner_text().startswith(name)


def test_frontier_shows_a_plan_and_copies_its_command(chromium: Any, folder: Path, report: Path) -> None:
    points = read_json(folder / "frontier.json")["points"]
    ordered = sorted(points, key=lambda point: point["cost"]["packed_bytes"])
    with opened(chromium, report, permissions=["clipboard-read", "clipboard-write"]) as found:
        page, slider = found.page, found.page.locator("#budget")
        for place in (0, len(ordered) // 2, len(ordered) - 1):
            slider.focus()
            page.keyboard.press("Home")
            for _ in range(place):
                page.keyboard.press("ArrowRight")
            command = page.locator("#budget-command").inner_text()
            target = float(re.search(r"bits\.target=([\d.]+)", command)[1])  # type: ignore[index]
            assert target == pytest.approx(ordered[place]["target"]) and command.count("bits.target=") == 1
            bits = [bar.inner_text() for bar in page.locator("#budget-strip .bar").all()]
            assert bits == [str(one["weight_bits"]) for one in ordered[place]["precisions"].values()]
        drawn = page.locator('[data-chart="frontier"] svg')
        drawn.scroll_into_view_if_needed()
        box = drawn.bounding_box()
        left, middle = box["x"] + LEFT_MARGIN, box["y"] + box["height"] / 2
        page.mouse.move(left, middle)
        assert slider.input_value() == "0"
        page.mouse.click(left, middle)
        command = page.locator("#budget-command").inner_text()
        assert page.evaluate("navigator.clipboard.readText()") == command
        assert page.locator("#toast").inner_text() == "Command copied"


def test_every_control_is_reached_by_the_keyboard(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as found:
        page = found.page
        wanted = page.evaluate(
            "[...document.querySelectorAll('button:not([tabindex=\"-1\"]), select, input, summary')].length"
        )
        reached = set()
        for _ in range(200):
            page.keyboard.press("Tab")
            own = page.evaluate(
                "(() => { const one = document.activeElement; return one.matches('button, select, input, summary') ? "
                "[...document.querySelectorAll('button, select, input, summary')].indexOf(one) : -1 })()"
            )
            if own in reached:
                break
            reached |= {own} if own >= 0 else set()
        assert len(reached) == wanted >= 8


def test_page_answers_what_a_stranger_asks(chromium: Any, folder: Path, report: Path) -> None:
    plan = read_json(folder / "plan.json")
    with opened(chromium, report) as found:
        text = found.page.locator(".answers").inner_text()
        most = max(bits["weight_bits"] for bits in plan["precisions"].values())
        assert f"the most bits, {most}" in text and "bytes" in text
        assert "next smaller plan" in text and "python train.py" in text and "bits.target=" in text
        assert "95 % interval" in text and "float network" in text
        headline = found.page.locator("h1").inner_text()
        assert re.fullmatch(r"[\d.]+ [KM]iB, [\d.]+ times smaller: [\d.]+\s% → [\d.]+\s%, .+", headline)
        assert ("within sampling error" in headline) == ("zero is inside" in text)


def test_the_most_bits_are_explained_by_what_a_bit_is_worth(tmp_path: Path) -> None:
    """What one bit less costs per byte, against the block where it costs least, from λ and the errors themselves."""
    folder = made_run(tmp_path)
    bits = read_json(folder / "plan.json")["precisions"]
    most = max(one["weight_bits"] for one in bits.values())
    per_byte = {}
    for row in sensitivity_of().rows:
        own = bits[row.block.name]["weight_bits"]
        if own > 2:
            more = row.eigenvalue.value * (row.weight_errors[own - 1] - row.weight_errors[own])  # type: ignore[union-attr]
            per_byte[row.block.name] = (more, more / (row.block.num_weights / 8))
    top = max((name for name in bits if bits[name]["weight_bits"] == most), key=lambda name: per_byte[name][0])
    others = {name: one for name, (_, one) in per_byte.items() if bits[name]["weight_bits"] < most}
    least = min(others, key=lambda name: others[name])
    ratio = per_byte[top][1] / others[least]
    text = re.sub(r"\s+", " ", write_page(folder).read_text(encoding="utf-8"))
    said = re.search(rf"from {re.escape(top)} would save .*?, ([\d.]+) times as much per byte saved as in (\S+),", text)
    assert said is not None and ratio > 1
    assert said[2] == least and float(said[1]) == pytest.approx(ratio, rel=0.006)


def test_print_shows_charts_and_no_controls(chromium: Any, report: Path) -> None:
    with opened(chromium, report, scheme="dark") as found:
        found.page.emulate_media(media="print", color_scheme="dark")
        assert (
            not found.page.locator("button.copy").first.is_visible()
            and found.page.locator(".chart svg").first.is_visible()
        )
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert found.page.pdf(format="A4").startswith(b"%PDF")


def test_names_cannot_break_out_of_the_page(chromium: Any, tmp_path: Path) -> None:
    """A block may be called anything printable."""
    evil = "</script><b id=x>&lt;'\""
    made = made_run(tmp_path, sensitivity=renamed(sensitivity_of(), "layer1.0", evil))
    with opened(chromium, write_page(made)) as found:
        assert found.complaints == [] and found.page.locator("#x").count() == 0
        found.page.locator("#strip .bar").nth(1).hover()
        assert found.page.locator("#detail").inner_text().startswith(evil)


def test_a_network_of_many_blocks_fits(chromium: Any, tmp_path: Path) -> None:
    few = sensitivity_of()
    rows = [
        replace(row, block=replace(row.block, name=f"{row.block.name}.{number}"))
        for number in range(12)
        for row in few.rows
    ]
    with opened(chromium, write_page(made_run(tmp_path, sensitivity=few.with_rows(rows), budgets=2)), PHONE) as found:
        page = found.page
        assert found.complaints == [] and page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert page.locator("#strip .bar").count() == 84
        page.locator("#strip .bar").nth(83).focus()
        assert page.locator("#detail").inner_text().startswith("fc.11")
        assert axe_violations(page) == []


PARTS = {
    "sensitivity alone": (("sensitivity.json", "config.yaml"), "7 blocks analysed; no bits are chosen yet"),
    "allocation": (("sensitivity.json", "plan.json", "frontier.json", "config.yaml"), "nothing is trained"),
    "no frontier": (("sensitivity.json", "plan.json", "report.json", "config.yaml"), "times smaller"),
    "nothing": ((), "Nothing is measured yet"),
}


@pytest.mark.parametrize(("files", "headline"), PARTS.values(), ids=PARTS)
def test_page_shows_what_is_there(
    chromium: Any, folder: Path, tmp_path: Path, files: tuple[str, ...], headline: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with opened(chromium, write_page(tmp_path, "python train.py")) as found:
        assert found.complaints == [] and headline in found.page.locator("h1").inner_text()
        assert "undefined" not in found.page.locator("body").inner_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((40, 44), "within sampling error"),
        ((40, 130), "−22.50 points, more than"),
        ((130, 40), "+22.50 points, more than"),
    ],
)
def test_verdict_follows_the_pairs(tmp_path: Path, wrong: tuple[int, int], said: str) -> None:
    parent, tuned = measured(wrong[0], 1), measured(wrong[1], 2)
    text = write_page(made_run(tmp_path, parent=parent, tuned=tuned)).read_text(encoding="utf-8")
    assert said in re.search(r"<h1>(.+?)</h1>", text)[1]  # type: ignore[index]
    same = agreement(parent, tuned)
    assert f"Both put {same:.2f}\N{NO-BREAK SPACE}% of these images into the same class" in text


def test_plans_that_were_measured_say_so(tmp_path: Path) -> None:
    judged = Judgement("KL on 400 training images", 400, 0.2, 0.25, 0.05, 0.01)
    made = made_run(tmp_path, searched=Searched("refinement", 31, 2, judged, None))
    text = write_page(made).read_text(encoding="utf-8")
    assert "Found by measuring whole plans: refinement, 31 plans measured: 0.25 → 0.2" in text
    assert "this one was the best of 31" in text
    assert "6 random plans of W-Comp 10, without training" in text


@pytest.mark.parametrize(
    ("phases", "said"), [(3, "At each dotted line one more block"), (1, "All blocks are quantised from the first")]
)
def test_the_curve_says_when_blocks_enter(tmp_path: Path, phases: int, said: str) -> None:
    folder = made_run(tmp_path)
    path = folder / "finetune" / "history.json"
    path.write_text(json.dumps([{**row, "phase": row["phase"] % phases} for row in read_json(path)][:20]))
    assert said in write_page(folder).read_text(encoding="utf-8")
