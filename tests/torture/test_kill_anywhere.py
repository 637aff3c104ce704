"""A run killed at random moments, in the middle of W&B and of its last writes, ends where an undisturbed one does."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, command_line, read_json, run_folder
from test_tracking import read_wandb, stranger, values

from hawq.experiment.metrics import read_metrics

KILLS = 20
SETTINGS = (
    *("tracking=wandb", "tracking.mode=offline", "baseline=direct", "analysis.save_every_seconds=0"),
    *("finetune.max_steps=12", "finetune.batch_size=32", "finetune.checkpoint_every=2"),
)


def start(outputs: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *command_line(outputs, *SETTINGS)]
    environment = stranger(home)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(outputs: Path, home: Path) -> float:
    """Seconds of a run to its end."""
    began = time.monotonic()
    process = start(outputs, home)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return time.monotonic() - began


def kill_after(seconds: float, outputs: Path, home: Path) -> bool:
    """Whether a kill that long after the start came before the run's own end."""
    process = start(outputs, home)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode != 0


def found(outputs: Path) -> dict[str, object]:
    """What must be the same: plan, weights bit for bit, accuracies, and every row of metrics, on disk and in W&B."""
    folder = run_folder(outputs)
    weights = torch.load(folder / "finetune" / "network.pt", weights_only=True)
    report = read_json(folder / "report.json")
    rows = sorted(str(sorted(row.items())) for row in read_metrics(folder))
    sent = [values(r.history.item) for r in read_wandb(folder) if r.WhichOneof("record_type") == "history"]
    steps = sorted(str(key) + str(row[key]) for row in sent for key in row if key.endswith("/step"))
    return {
        "plan": (folder / "plan.json").read_bytes(),
        "weights": {name: str(v.tolist() if hasattr(v, "tolist") else v) for name, v in weights.items()},
        "packed": (folder / "model.safetensors").read_bytes(),
        "rows": [row["accuracy"] for row in report["rows"]],
        "metrics": rows,
        "W&B": steps,
    }


@pytest.mark.torture
def test_killed_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = finish(tmp_path / "whole", tmp_path / "home")
    expected = found(tmp_path / "whole")
    rng = random.Random(0)
    wrong, killed = [], 0
    for number in range(KILLS):
        outputs = tmp_path / str(number)
        share = rng.uniform(0.75, 1.0) if number % 2 else rng.uniform(0.1, 1.0)  # half of them in the last writes
        killed += kill_after(share * seconds, outputs, tmp_path / f"home{number}")
        finish(outputs, tmp_path / f"again{number}")
        differs = [name for name, value in found(outputs).items() if value != expected[name]]
        wrong += [(number, round(share, 3), differs)] if differs else []
    with capsys.disabled():
        print(f"\nkilled {killed} of {KILLS} runs before their end; {KILLS - len(wrong)} right, {len(wrong)} wrong")
    assert not wrong and killed >= KILLS // 2
