"""Sweeps: finished jobs are not run again, a failed one ends nothing, and other processes find the same folder."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import finished, run_apart, run_here

from hawq.experiment.config.names import command_name
from hawq.experiment.jobs import begin, fail, finish, is_done, read_jobs, write_jobs
from hawq.experiment.sweep import conclude_without, is_lost_process

QUICK = ("stages=[analysis,allocation]", "bits.target=8,12")


def sweep_of(outputs: Path) -> Path:
    (found,) = (outputs / "multirun").iterdir()
    return found


def states(outputs: Path) -> dict[str, str]:
    return {job.label: job.state for job in read_jobs(sweep_of(outputs))}


def test_states_are_on_disk(tmp_path: Path) -> None:
    write_jobs(tmp_path, [(f"seed={seed}", name, f"python train.py seed={seed}") for seed, name in enumerate("abc")])
    for name in "abd":
        (tmp_path / name).mkdir()
    finish(tmp_path / "a", {"seed": 0})
    fail(tmp_path / "b", "no memory")
    finish(tmp_path / "d", {})
    found = {job.folder.name: (job.label, job.state, job.error) for job in read_jobs(tmp_path)}
    assert found == {
        "a": ("seed=0", "finished", ""),
        "b": ("seed=1", "failed", "no memory"),
        "c": ("seed=2", "not finished", ""),
        "d": ("d", "finished", ""),
    }
    assert is_done(tmp_path / "a", {"seed": 0}) and not is_done(tmp_path / "a", {"seed": 9})
    (tmp_path / "a" / "done.json").write_text("{")
    assert not is_done(tmp_path / "a", {"seed": 0})
    begin(tmp_path / "b")
    assert [job.state for job in read_jobs(tmp_path)][:2] == ["finished", "not finished"]


def test_how_jobs_are_started_is_no_part_of_the_folder() -> None:
    plain = command_name(["-m", "seed=0,1", "bits.target=8"])
    started = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/hydra_logging=none"]
    assert command_name(["-m", "bits.target=8", *started, "seed=0,1"]) == plain
    assert command_name(["-m", "seed=0,1", "bits.target=9"]) != plain


def test_a_failed_job_ends_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of three jobs fails once; the same command then runs it alone."""
    from hawq.experiment import pipeline

    ran: list[float] = []
    whole, broken = pipeline.run_stages, [True]

    def run_stages(settings, inputs):  # type: ignore[no-untyped-def]
        ran.append(settings.bits.target)
        if settings.bits.target == 10 and broken[0]:
            raise RuntimeError("out of something")
        return whole(settings, inputs)

    monkeypatch.setattr(pipeline, "run_stages", run_stages)
    jobs = ("-m", "stages=[analysis,allocation]", "bits.target=8,10,12")
    message = run_here(tmp_path, *jobs)
    assert message is not None and "1 of 3 jobs failed, first bits.target=10: RuntimeError: out of something" in message
    assert ran == [8, 10, 12]
    assert states(tmp_path) == {"bits.target=8": "finished", "bits.target=10": "failed", "bits.target=12": "finished"}
    page = (sweep_of(tmp_path) / "table.html").read_text(encoding="utf-8")
    assert "<code>bits.target=10</code>: <b>failed</b>, RuntimeError: out of something" in page
    shown = capsys.readouterr().out
    assert "failed: bits.target=10" in shown and "predicted increase" in shown and "accuracy %" not in shown
    cells = [line.strip("| ").split(" | ") for line in (sweep_of(tmp_path) / "table.md").read_text().splitlines()]
    assert [row[0].strip() for row in cells[2:]] == ["bits.target=8", "bits.target=12"]
    assert all(row[4].strip() == "–" and row[6].strip().endswith("KiB") and row[8].strip() != "–" for row in cells[2:])

    broken[0] = False
    assert run_here(tmp_path, *jobs) is None
    assert ran == [8, 10, 12, 10]
    assert set(states(tmp_path).values()) == {"finished"} and len(finished(tmp_path, "analysis")) == 1

    assert run_here(tmp_path, *jobs) is None
    assert ran == [8, 10, 12, 10]
    assert capsys.readouterr().out.count("finished before") == 2 + 3
    assert run_here(tmp_path, "-m", "stages=[analysis]", "bits.target=8,10,12") is None
    assert len(ran) == 7  # other stages are other work, in another sweep


class UncompletedJobError(Exception):
    """Named as the error of submitit, which need not be installed."""


def test_a_killed_process_is_a_failed_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Submitit gives up at the first one; the others are waited for, and the table is written."""
    write_jobs(tmp_path, [(f"seed={seed}", name, f"python train.py seed={seed}") for seed, name in enumerate("ab")])
    (tmp_path / "b").mkdir()
    program = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('{}')"
    late = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "b" / "done.json")])
    for job in (late.pid, 1):  # the other one is no process of ours
        (tmp_path / ".submitit" / str(job)).mkdir(parents=True)
    assert is_lost_process(UncompletedJobError("no output")) and not is_lost_process(ValueError("another"))
    with pytest.raises(SystemExit, match=r"1 of 2 jobs failed, first seed=0: its process was killed"):
        conclude_without(tmp_path, "submitit_launcher.LocalLauncher")
    assert [job.state for job in read_jobs(tmp_path)] == ["failed", "finished"]
    assert "table.html" in capsys.readouterr().out and (tmp_path / "table.html").is_file()


def test_a_lost_process_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever raises it, from the real command line."""
    from hawq.experiment import main

    def run_job(config: object) -> None:
        raise UncompletedJobError("Job 1 has not produced any output")

    monkeypatch.setattr(main, "run_job", run_job)
    message = run_here(tmp_path, "-m", *QUICK)
    assert message is not None and message.startswith("error: 2 of 2 jobs failed, first bits.target=8: not finished")
    assert f"Table of all jobs: {sweep_of(tmp_path) / 'table.html'}" in capsys.readouterr().out


@pytest.mark.torture
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_other_processes_share_folder_and_analysis(tmp_path: Path, launcher: str) -> None:
    if not importlib.util.find_spec(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"):
        pytest.skip("the launchers are not installed")
    began = time.monotonic()
    process = run_apart(tmp_path, "-m", *QUICK, f"hydra/launcher={launcher}")
    assert process.returncode == 0, process.stderr
    assert states(tmp_path) == {"bits.target=8": "finished", "bits.target=12": "finished"}
    assert len(finished(tmp_path, "analysis")) == 1 and len(finished(tmp_path, "float_network")) == 2
    printed = [process.stdout, *(path.read_text() for path in sweep_of(tmp_path).glob(".submitit/*/*.out"))]
    for stage in ("float_network", "analysis"):  # one job worked, the other waited and took what it had made
        assert "".join(printed).count(f"\n{stage}: found in the cache") == 1
    said = re.search(r"Table of all jobs: (\S+)", process.stdout)
    assert said and Path(said[1]) == sweep_of(tmp_path) / "table.html"
    once = time.monotonic() - began
    process = run_apart(tmp_path, "-m", *QUICK, f"hydra/launcher={launcher}")
    assert process.returncode == 0 and time.monotonic() - began - once < max(once, 30)
    assert len(list((tmp_path / "multirun").iterdir())) == 1
