"""The console: tables that fit, --quiet, --info, and what none of it may load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import CONF, REPOSITORY, run_here

from hawq.experiment import console, progress
from hawq.experiment.config.listing import asked_groups, options_text
from hawq.experiment.jobs import Job

COLUMNS = ("block", "weights", "eigenvalue", "error", "products", "gradients", "score", "bits", "a-bits", "omega")
ROW = ("layer1.0", 4608, 51.7, 0.0036, 7, 4.91, 0.0112, 4, 4, 36.1)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def at_width(monkeypatch: pytest.MonkeyPatch, columns: int, terminal: bool = False) -> None:
    monkeypatch.setattr(console, "width", lambda: columns)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_console(monkeypatch: pytest.MonkeyPatch, columns: int, terminal: bool) -> None:
    at_width(monkeypatch, columns, terminal)
    text = console.table(COLUMNS, [ROW, ROW], drop=console.LESS)
    lines = ANSI.sub("", text).splitlines()
    assert max(map(len, lines)) <= max(columns, len("9 more columns in the report"))
    assert any(line.strip("│| ").startswith("layer1.0") for line in lines)
    assert ("\x1b[" in text) == terminal
    if columns == 80:
        assert "omega" in text and "bits" in text and "gradients" not in text and "more column" in text
    if columns == 200:
        assert all(column in text for column in COLUMNS) and "more column" not in text


@given(st.lists(st.text(st.characters(codec="ascii", categories=("L", "N")), max_size=30), min_size=1, max_size=12))
def test_any_table_fits(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_width(patch, 50)
        columns = [f"{place}{name}" for place, name in enumerate(names)]
        text = console.table(columns, [[name * 2 for name in columns]])
    assert all(len(line) <= 50 for line in text.splitlines())


def test_jobs_in_one_line_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_width(monkeypatch, 80)
    jobs = [Job("bits.target=8 " + "x" * 100, tmp_path, "not finished"), Job("seed=1", tmp_path, "failed", "no memory")]
    lines = console.jobs_summary(jobs).splitlines()
    assert all(len(line) <= 80 for line in lines[:-1]) and lines[-1] == "failed: seed=1: no memory"
    assert "bits.target=8 x" in lines[2] and "not finished" in lines[2] and "…" in lines[2]


def test_quiet_prints_the_last_line_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HAWQ_QUIET", raising=False)
    assert progress.be_quiet(["seed=1"]) == ["seed=1"] and not progress.is_quiet()
    monkeypatch.setenv("HAWQ_QUIET", "0")
    assert progress.be_quiet(["--quiet", "seed=1"]) == ["seed=1", "hydra/hydra_logging=none"] and progress.is_quiet()
    with console.last_line_alone():
        print("one\n\nReport: here\n")
    with progress.Console().task("work", 3) as task:
        task.advance(3)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("Report: here\n", "")


INFO = {
    "--info": [],
    "--info bits": ["bits"],
    "--info=bits": ["bits"],
    "--info seed=1": [],
    "-m --info": [],
    "--info defaults": None,
    "--info=all": None,
    "seed=1": None,
}


@pytest.mark.parametrize(("typed", "groups"), INFO.items(), ids=str)
def test_info_is_ours_unless_hydra_knows_the_word(typed: str, groups: list[str] | None) -> None:
    assert asked_groups(typed.split()) == groups


def test_info_lists_every_option_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(tmp_path, "--info") is None
    text = capsys.readouterr().out
    lines = {line[4:].split()[0] for line in text.splitlines() if line.startswith(("    ", "  * "))}
    options = [path for path in CONF.rglob("*.yaml") if path.parent not in (CONF, CONF / "sweep")]
    assert {"/".join(path.relative_to(CONF).with_suffix("").parts[1:]) for path in options} <= lines
    described = [line for line in text.splitlines() if line.startswith(("    ", "  * "))]
    assert all(len(line.split(maxsplit=2 if line.startswith("  * ") else 1)) > 1 for line in described)
    assert "  * auto" in text and "  * mixed" in text and "  * wandb" in text


def test_info_of_a_group_lists_keys_and_refuses_others() -> None:
    text = options_text(["tracking"])
    assert "timeout_seconds: 30.0" in text and "lanczos" not in text
    with pytest.raises(ValueError, match=r"bitz is not a group: did you mean bits"):
        options_text(["bitz"])


PROBE = """
import sys
sys.argv = ["train.py", *sys.argv[1:]]
import train
try:
    train.command_line()
except SystemExit:
    pass
print("loaded:", [name for name in ("torch", "jinja2", "rich", "matplotlib", "wandb") if name in sys.modules])
"""


@pytest.mark.parametrize("option", ["--help", "--info"])
def test_help_loads_nothing_heavy(option: str) -> None:
    command = [sys.executable, "-c", PROBE, option]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout[-300:]


def test_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "-sc", "install=bash"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "complete -o nospace" in done.stdout
