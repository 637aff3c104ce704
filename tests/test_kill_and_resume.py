"""A run killed at any moment and started again ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial as partial_function
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, command_line, finished, read_json, run_folder, run_here

from hawq.experiment.artifacts import MANIFEST, PartialCheckpoint
from hawq.experiment.metrics import read_metrics
from hawq.records import SENSITIVITY_SCHEMA, Sensitivity, read_record

LONG_ENOUGH = (
    "stages=[analysis,allocation,finetune]",
    "analysis.save_every_seconds=0",
    "solver=power",
    "solver.stopping=residual",
    "solver.tolerance=1e-6",
    "solver.max_iterations=25",
    "finetune.max_steps=30",
    "finetune.batch_size=32",
    "finetune.checkpoint_every=2",
)


RECONSTRUCTED = (
    "stages=[analysis,allocation,reconstruction,tuning,finetune]",
    "reconstruction=qdrop",
    "reconstruction.iterations=20",
    "reconstruction.num_samples=16",
    "reconstruction.batch_size=8",
    "tuning.epochs=20",
    "tuning.num_samples=16",
    "tuning.batch_size=8",
    "finetune.epochs=0",
)


def start(outputs: Path, settings: Sequence[str] = LONG_ENOUGH) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *command_line(outputs, *settings)]
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    heed = partial_function(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells let background jobs ignore Ctrl-C
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=out, text=True, preexec_fn=heed)


def finish(outputs: Path, settings: Sequence[str] = LONG_ENOUGH) -> tuple[Path, str]:
    """Runs to the end, in this process to save a start; the run folder and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        message = run_here(outputs, *settings)
    assert message is None, message
    return run_folder(outputs), printed.getvalue()


def partial(outputs: Path, stage: str) -> list[Path]:
    return sorted((outputs / "cache" / stage).glob("*/progress-*.pt"))


def kill_in(stage: str, outputs: Path, settings: Sequence[str] = LONG_ENOUGH) -> None:
    """Starts a run and kills it once the stage has stored a half-done state for the second time."""
    process = start(outputs, settings)
    try:
        end = time.monotonic() + 150
        while not any(int(path.stem.split("-")[1]) > 1 for path in partial(outputs, stage)):
            assert process.poll() is None and time.monotonic() < end, f"{stage} was never half done"
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert partial(outputs, stage) and not finished(outputs, stage), "the kill came too late"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed."""
    return finish(tmp_path_factory.mktemp("undisturbed"))[0]


def sensitivity(folder: Path) -> Sensitivity:
    """As a run wrote it; estimates are equal whatever time they took."""
    return read_record(folder / "sensitivity.json", SENSITIVITY_SCHEMA, Sensitivity)


def same(one: object, other: object) -> bool:
    """Bit for bit for tensors; a quantiser's switch is no tensor."""
    both_tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return torch.equal(one, other) if both_tensors else one == other


def rows(folder: Path) -> list[tuple[object, ...]]:
    """Metrics in an order of their own: a resumed analysis may hear of its blocks in another one."""
    return sorted((row["stage"], row["step"], *row.items()) for row in read_metrics(folder))


@pytest.mark.parametrize("stage", ["analysis", "finetune"])
def test_killed_run_ends_where_an_undisturbed_one_does(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    kill_in(stage, tmp_path)
    state = PartialCheckpoint(partial(tmp_path, stage)[-1].parent)
    kept = state.load()
    assert kept is not None and 0 < state.earlier_seconds < 200
    state.earlier_seconds += 1000
    state.save(kept)
    folder, text = finish(tmp_path)
    assert ("analysis: found in the cache" in text) == (stage == "finetune")
    (artifact,) = finished(tmp_path, stage)
    assert not partial(tmp_path, stage) and 1000 < read_json(artifact / MANIFEST)["seconds"] < 1400
    assert sensitivity(folder) == sensitivity(undisturbed)
    for name in ("plan.json", "finetune/history.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert_same_networks(folder, undisturbed)
    assert rows(folder) == rows(undisturbed)


def assert_same_networks(one: Path, other: Path) -> None:
    resumed, straight = (torch.load(run / "finetune" / "network.pt") for run in (one, other))
    assert resumed.keys() == straight.keys() and len(straight) > 50
    assert [name for name in straight if not same(resumed[name], straight[name])] == []


def test_killed_reconstruction_and_tuning_end_where_undisturbed_ones_do(tmp_path: Path) -> None:
    straight, _ = finish(tmp_path / "undisturbed", RECONSTRUCTED)
    outputs = tmp_path / "killed"
    kill_in("reconstruction", outputs, RECONSTRUCTED)
    kill_in("tuning", outputs, RECONSTRUCTED)
    folder, text = finish(outputs, RECONSTRUCTED)
    assert "reconstruction: found in the cache" in text
    assert not partial(outputs, "reconstruction") and not partial(outputs, "tuning")
    assert_same_networks(folder, straight)
    assert rows(folder) == rows(straight)


def test_an_interrupted_run_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C: one line instead of a traceback, the shell's exit code, and the same end."""
    process = start(tmp_path)
    end = time.monotonic() + 150
    while not partial(tmp_path, "analysis"):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in text
    assert text.splitlines()[-1] == "stopped: type the same command again to go on from here"
    folder, _ = finish(tmp_path)
    assert sensitivity(folder) == sensitivity(undisturbed)
    assert (folder / "plan.json").read_bytes() == (undisturbed / "plan.json").read_bytes()
