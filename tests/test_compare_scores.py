"""Scores compared at equal bytes on a tiny network: what is printed is what plain PyTorch measures, and it resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from runs import run_folder, run_here, run_script

from hawq.files import write_whole
from hawq.models import ModelSpec, write_checkpoint
from hawq.records import Normalization
from hawq.trials import Trials


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    torch.manual_seed(0)
    network = ModelSpec("resnet20", None).build(10).network
    data = write_checkpoint(network, Normalization((0.3, 0.3, 0.3), (0.3, 0.3, 0.3)))
    checkpoint = write_whole(tmp_path / "float.safetensors", data)
    return (f"model.checkpoint={checkpoint}", "model=resnet20", "dataset=digits", "dataset.size=8", "device=cpu")


def test_plans_have_the_bytes_of_uniform_and_are_measured_once(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, out = tmp_path / "outputs", tmp_path / "scores"
    own = ("stages=[analysis]", "analysis.num_samples=8", "tracking=none")
    assert run_here(outputs, *arguments, *own) is None
    typed = (
        run_folder(outputs) / "sensitivity.json",
        "--bits",
        "4,3",
        "--images",
        12,
        "--out",
        out,
        "--refine",
        2,
        *arguments,
    )
    typed = (*typed, "search.num_images=6", "search.batch_size=6", "search.calibration_images=8")
    capsys.readouterr()
    assert run_script("compare_scores.py", *typed) is None
    first = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if re.match(r"\| [43] ", line)]
    sizes = {(row[0].strip(), row[1].strip()): float(row[2]) for row in rows}
    for budget in "43":
        names = {name for bits, name in sizes if bits == budget}
        assert names >= {"uniform", "error", "eigenvalue", "error, refined 2"}
        assert all(size <= sizes[budget, "uniform"] for (bits, _), size in sizes.items() if bits == budget)
    kept = json.loads((out / "4-uniform.json").read_text())
    assert len(kept["hits"]) == len(kept["kl"]) == 12 and set(kept["hits"]) <= {0, 1}

    def again(*_: object) -> None:
        raise AssertionError("a plan is measured twice")

    monkeypatch.setattr(Trials, "measure", again)
    again_typed = [x for x in typed if x not in ("--refine", 2)]
    assert run_script("compare_scores.py", *again_typed) is None
    error = run_script("compare_scores.py", *again_typed, "seed=1")
    assert error is not None and f"--out={out} holds results of other options" in error


@pytest.mark.parametrize(
    "extra, message",
    [
        (("bits=uniform",), "bits=mixed"),
        (("model.checkpoint=null",), "untrained"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, arguments: tuple[str, ...], extra: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "sensitivity.json"
    error = run_script("compare_scores.py", file, *arguments, *extra, "--out", tmp_path / "scores")
    assert error is not None and message in error
