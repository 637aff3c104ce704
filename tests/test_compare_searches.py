"""The league of searches on a tiny network: its records, its table, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import run_script

from hawq.files import write_whole
from hawq.models import ModelSpec, write_checkpoint
from hawq.records import Normalization
from hawq.search.objective import Objective


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = ModelSpec("resnet20", None).build(10).network
    data = write_checkpoint(network, Normalization((0.3, 0.3, 0.3), (0.3, 0.3, 0.3)))
    return write_whole(tmp_path / "float.safetensors", data)


def test_the_league_is_recorded_and_resumed(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "league"
    arguments = (
        *("--evaluations", "3", "--seeds", 2, "--out", out, "--searches", "random,optimum,refined from error,HAQ"),
        *("model=resnet20", f"model.checkpoint={checkpoint}", "dataset=digits", "dataset.size=8", "device=cpu"),
        *("bits.target=9", "search.num_images=12", "search.batch_size=6", "search.other_images=8"),
        *(
            "--against",
            "refined from error",
            "search.calibration_images=8",
            "analysis.num_samples=8",
            "solver=gradient",
            "search.judge=errors",
        ),
    )
    assert run_script("compare_searches.py", *arguments) is None
    printed = capsys.readouterr().out
    assert "| − refined from error " in printed
    names = ["random", "optimum by error", "optimum by relative_error", "refined from error", "HAQ"]
    assert all(f"| {name} " in printed for name in names)
    records = [json.loads(path.read_text()) for path in out.glob("*-e*-s*.json")]
    assert {(r["search"], r["seed"]) for r in records} >= {
        ("random", 0),
        ("random", 1),
        ("HAQ", 1),
        ("optimum by error", 0),
    }
    for record in records:
        assert record["measured"] <= record["evaluations"] == 3
        assert record["curve"] == sorted(record["curve"], reverse=True) and record["other_images"] == 8
    assert (out / "searches.png").stat().st_size > 0
    (out / "random-e3-s1.json").unlink()
    older = json.loads((out / "HAQ-e3-s0.json").read_text())
    values = older.pop("other_values")
    (out / "HAQ-e3-s0.json").write_text(json.dumps(older))  # as records were before they held the values

    def refuse(self: Objective, *given: object) -> None:
        raise AssertionError("a plan was measured again")

    monkeypatch.setattr(Objective, "_run", refuse)
    at = arguments.index("--searches") + 1
    assert (
        run_script("compare_searches.py", *arguments[:at], "random,HAQ", *arguments[at + 1 :], "--against", "HAQ")
        is None
    )
    shown = capsys.readouterr().out
    assert "| HAQ " in shown and "HAQ with noise" not in shown and "| optimum" not in shown
    assert "refined from error" in (run_script("compare_searches.py", *arguments, "--against", "HAQ-2") or "")
    error = run_script("compare_searches.py", *arguments[:at], "haq", *arguments[at + 1 :])
    assert error is not None and "--searches: none is called 'haq' or begins so; there are optimum by" in error
    missing = run_script(
        "compare_searches.py", *arguments[:at], "optimum by trace,refined from error", *arguments[at + 1 :]
    )
    assert missing is not None and "none is called 'optimum by trace'" in missing  # which was not measured
    assert run_script("compare_searches.py", *arguments) is None  # its plans are known
    assert capsys.readouterr().out.splitlines()[-3:] == printed.splitlines()[-3:]
    assert json.loads((out / "HAQ-e3-s0.json").read_text())["other_values"] == pytest.approx(values)
    error = run_script("compare_searches.py", *arguments, "search.temperature=1")
    assert error is not None and f"--out={out} holds results of other options" in error


@pytest.mark.parametrize("option", ["--seeds=0", "--seeds=x", "--evaluations=100,-3", "--evaluations=", "--seeds=1.5"])
def test_numbers_are_whole_and_above_0(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("compare_searches.py", option) == "2"
    assert "is no whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--searches=annealing",), "none is called 'annealing' or begins so; there are optimum by eigenvalue"),
        (("--against=HAQ-2",), "--against=HAQ-2 is none of the searches: give one of HAQ"),
        (("--searches=HAQ,random", "--against=Optuna TPE"), "none of the searches: give one of HAQ, random"),
        (("--sensitivity=gone.json",), "No such file or directory: 'gone.json'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    error = run_script("compare_searches.py", *given, "--out", tmp_path / "new", "dataset=digits")
    assert error is not None and message in error
    assert not (tmp_path / "new").exists()


def test_an_untrained_network_is_refused(tmp_path: Path) -> None:
    error = run_script("compare_searches.py", "--out", tmp_path, "dataset=digits", "bits.target=9")
    assert error is not None and "the network comes untrained" in error
