"""Lines about the blocks where there is no terminal."""

import re

import pytest
import torch

from hawq.experiment import progress
from hawq.experiment.progress import BlockBars
from hawq.records import Estimate


def estimate(value, error):
    return Estimate(value, error, 1, False)


@pytest.fixture
def talkative(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_says_what_is_known_and_how_long_it_takes(talkative, capsys):
    with BlockBars(["a", "b"], 0.01) as shown:
        shown.show("a", estimate(200.0, 20.0), False)  # half the orders of magnitude of one block of two
        shown.show("b", estimate(3.0, 0.01), True)
    first, second = lines(capsys)
    assert re.fullmatch(r"analysis: 0/2 blocks, \d+ s so far; a 200 ± 2e\+01", first)  # nothing is known of b
    assert re.fullmatch(r"analysis: 1/2 blocks, about \d+ s left; a 200 ± 2e\+01", second)


SHARES = {
    "as large as the value": (5.0, 5.0, 0.0),
    "larger": (5.0, 50.0, 0.0),
    "a tenth, at a tolerance of a hundredth": (5.0, 0.5, 0.5),
    "negative value": (-5.0, 0.5, 0.5),
    "at the tolerance, and not done": (5.0, 0.05, 0.99),
    "no error": (5.0, 0.0, 0.0),
    "unknown": (float("nan"), float("inf"), 0.0),
    "zero": (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(("value", "error", "share"), SHARES.values(), ids=SHARES)
def test_progress_is_counted_in_orders_of_magnitude(value, error, share):
    assert BlockBars(["a"], 0.01)._share(estimate(value, error)) == pytest.approx(share)
    assert BlockBars(["a"], None)._share(estimate(value, error)) == 0.0


def test_remaining_time_comes_from_the_pace(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("hawq.experiment.progress.time.monotonic", lambda: now[0])
    with BlockBars(["a", "b"], 0.01) as shown:
        now[0] += 10.0
        shown.show("a", estimate(1.0, 0.1), False)
        assert lines(capsys) == []  # a line only every 15 seconds
        now[0] += 20.0
        shown.show("b", estimate(1.0, 0.5), True)
    (line,) = lines(capsys)
    assert "about 15 s left" in line  # each took half of the 30 seconds, and one is half way


def test_an_error_that_grows_again_is_no_step_back(talkative, capsys):
    with BlockBars(["a"], 0.01) as shown:
        for error in (0.1, 0.5):
            shown.show("a", estimate(1.0, error), False)
        assert shown._shares == {"a": pytest.approx(0.5)}
    assert len(lines(capsys)) == 2


def test_only_the_first_process_speaks(talkative, monkeypatch, capsys):
    monkeypatch.setattr(progress, "speaks", lambda: False)
    with BlockBars(["a"], 0.01) as shown:
        shown.show("a", estimate(1.0, 0.1), False)
    assert lines(capsys) == []


def test_on_a_terminal_each_block_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with BlockBars(["stem", "head"], 0.01) as shown:
        shown.show("stem", estimate(1.0, 0.1), False)
        shown.show("head", estimate(2.0, 0.02), True)
        bars = {one.description: (round(one.completed), one.fields["note"]) for one in shown._bars.tasks}
    assert bars == {"stem": (50, "1 ± 0.1"), "head": (100, "2 ± 0.02")}
    text = capsys.readouterr().err
    assert "stem" in text and "head" in text and "blocks" not in text


@pytest.mark.parametrize("draws", [60, 200, 700])
def test_the_time_of_a_trace_is_right_within_a_factor_of_two(draws, monkeypatch, capsys):
    """Hutchinson's standard error falls with the root of the draws, one second each."""
    now = [0.0]
    monkeypatch.setattr("hawq.experiment.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    values = torch.randn(draws, generator=torch.Generator().manual_seed(draws)) + 3.0
    tolerance = float(values.std()) / draws**0.5 / 3.0
    with BlockBars(["a"], tolerance) as shown:
        for seen in range(2, draws):
            now[0] = float(seen)
            mean, error = values[:seen].mean(), values[:seen].std() / seen**0.5
            shown.show("a", Estimate(float(mean), float(error), seen, False, confidence=0.68), False)
    told = [(seen, re.search(r"about (\d+) s left", line)) for seen, line in enumerate(lines(capsys), start=2)]
    said = [(seen, int(found.group(1))) for seen, found in told if found and seen > draws / 5 and draws - seen > 5]
    assert len(said) > draws / 2
    slack = 0.05 * draws  # near the end a small difference of the errors is a large one of what is left
    assert all((draws - seen) / 2 - slack <= left <= 2 * (draws - seen) + slack for seen, left in said)


@pytest.mark.parametrize("needs", [(40, 400), (30, 60, 900), (100, 110, 120, 130)], ids=str)
def test_the_time_of_blocks_that_need_different_draws(needs, monkeypatch, capsys):
    """All draw in step, a second each, until each has what it needs: what is left is that of the slowest alone."""
    now = [0.0]
    monkeypatch.setattr("hawq.experiment.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    total, said = float(sum(needs)), []
    with BlockBars([str(place) for place in range(len(needs))], 0.05) as shown:
        for drawn in range(2, max(needs) + 1):
            for place, need in enumerate(needs):
                if drawn <= need:
                    now[0] += 1.0
                    error = 0.05 * (need / drawn) ** 0.5
                    found = Estimate(1.0, error, drawn, False, float(drawn), confidence=0.68)
                    shown.show(str(place), found, drawn == need)
                    line = lines(capsys)[-1]
                    told = re.search(r"about (\d+) s left", line)
                    if told and total - now[0] > 10:
                        said.append((total - now[0], int(told.group(1))))
    assert len(said) > total / 2 and all(true / 2 <= left <= 2 * true for true, left in said)


def test_no_time_is_told_of_a_bound(talkative, capsys):
    """It falls by factors of ten at the end: no pace foretells it."""
    with BlockBars(["a"], 0.01) as shown:
        for error in (float("inf"), 0.9, 0.3, 0.02):
            shown.show("a", Estimate(1.0, error, 1, False, confidence=0.99), False)
    assert all("so far" in line and "left" not in line for line in lines(capsys))
