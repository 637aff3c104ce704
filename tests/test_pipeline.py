"""Whole runs: what they leave behind, what they do not do twice, and what they report."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import REPOSITORY, TINY, compose_here, finished, read_json, run_apart, run_folder, run_here, run_script
from safetensors.torch import load_file
from scipy.stats import spearmanr

from hawq.experiment.config.build import build_settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.metrics import read_metrics
from hawq.experiment.prepare import prepare
from hawq.export import load
from hawq.reconstruction import Descent
from hawq.records import SENSITIVITY_SCHEMA, BitPlan, RunReport, Sensitivity, from_dict
from hawq.report import validation_table
from hawq.validation import Validated

BLOCKS = ["conv1", *[f"layer{stage}.{unit}" for stage in (1, 2, 3) for unit in (0, 1, 2)], "fc"]
UPSTREAM = ["float_network", "float_network/accuracy", "analysis"]
BOTH = "baseline=direct"


def record(path: Path, kind: type) -> Any:
    """A record as a run wrote it."""
    data = read_json(path)
    data.pop("schema")
    return from_dict(data, kind)


def reused(folder: Path) -> dict[str, bool]:
    """Stage → whether its result came from the cache, as the report says."""
    return {stage.stage: stage.reused for stage in record(folder / "report.json", RunReport).stages}


def _stages(folder: Path) -> set[str]:
    """The stages whose metrics a run holds."""
    return {row["stage"] for row in read_metrics(folder)}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs folder of one tiny run through all stages, with the direct baseline."""
    folder = tmp_path_factory.mktemp("pipeline") / "outputs"
    assert run_here(folder, BOTH) is None
    return folder


@pytest.fixture(scope="module")
def first(outputs: Path) -> Path:
    """The folder of that run."""
    return run_folder(outputs)


@pytest.fixture(scope="module")
def report(first: Path) -> RunReport:
    return record(first / "report.json", RunReport)


def test_run_folder_holds_every_result(first: Path) -> None:
    assert set(digests(first)) == {
        "config.yaml",
        "sensitivity.json",
        "plan.json",
        "frontier.json",
        "finetune/network.pt",
        "finetune/best.pt",
        "finetune/history.json",
        "model.safetensors",
        "metrics.jsonl",
        "report.json",
        "report.html",
        "figures/sensitivity.png",
        "figures/finetuning.png",
        "figures/frontier.png",
        "direct/plan.json",
        "direct/finetune/network.pt",
        "direct/finetune/best.pt",
        "direct/finetune/history.json",
        "direct/model.safetensors",
    }
    for path in (first / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_results_are_about_the_same_blocks(first: Path, report: RunReport) -> None:
    assert read_json(first / "sensitivity.json")["schema"] == SENSITIVITY_SCHEMA
    sensitivity, plan = record(first / "sensitivity.json", Sensitivity), record(first / "plan.json", BitPlan)
    assert [block.name for block in sensitivity.blocks] == list(plan.precisions) == BLOCKS
    assert plan == report.plan and plan.cost.w_comp >= 10.6
    assert _stages(first) == {"float_network", "analysis", "finetune", "finetune/direct"}


def test_report_has_a_row_for_each_network(first: Path, report: RunReport) -> None:
    assert [(row.method, row.weight_bits) for row in report.rows] == [
        ("float", "32"),
        ("direct uniform", "3 MP"),
        ("HAWQ", "2 MP"),
    ]
    sizes = [row.size_bytes for row in report.rows]
    assert sizes[1:] == [(first / name / "model.safetensors").stat().st_size for name in ("direct", ".")]
    assert sizes[1] <= 1.01 * sizes[2] and sizes[2] < sizes[0] / 8
    assert all(0 <= row.accuracy <= 100 for row in report.rows)


def test_report_has_the_provenance_of_each_stage(outputs: Path, report: RunReport) -> None:
    stages = {stage.stage: stage for stage in report.stages}
    assert list(stages) == [
        *[*UPSTREAM, "allocation"],
        *["finetune/direct", "finetune", "export/direct", "export"],
    ]
    for name, stage in stages.items():
        assert not stage.reused and stage.seconds >= 0
        assert stage.peak_memory_mib is not None and stage.peak_memory_mib > 50
        if name != "allocation":
            assert outputs / "cache" / name.split("/")[0] / stage.key in finished(outputs, name.split("/")[0])


def test_report_says_where_it_comes_from(first: Path, report: RunReport) -> None:
    assert {"python", "machine", "torch", "timm", "hydra-core", "scipy"} <= set(report.versions)
    if (REPOSITORY / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", str(report.git_commit))
    assert report.command.startswith("python train.py tracking=none ") and BOTH in report.command
    assert (report.config["seed"], report.config["bits"]["target"]) == (0, 10.6)
    assert Path(report.paths["folder"]) == first and Path(report.paths["sensitivity"]).is_file()
    assert 0 < report.seconds < 600


def test_reported_accuracy_is_that_of_the_packed_file(outputs: Path, first: Path, report: RunReport) -> None:
    prepared = prepare(build_settings(compose_here(*TINY, BOTH, f"outputs={outputs}")))
    for name, row in (("direct", report.rows[1]), (".", report.rows[2])):
        packed = load(first / name / "model.safetensors", prepared.network)
        assert prepared.test_accuracy(packed) == row.accuracy


def test_same_command_does_nothing_twice(outputs: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, cache = digests(first), digests(outputs / "cache")
    assert run_here(outputs, BOTH) is None
    assert run_folder(outputs) == first
    assert reused(first) == {stage: stage != "allocation" for stage in reused(first)}
    after = digests(first)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {"report.json", "report.html"}
    assert digests(outputs / "cache") == cache
    assert "found in the cache" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "further"), [("none", set()), ("auto", {"reconstruction"})])
def test_nothing_is_trained(outputs: Path, report: RunReport, tmp_path: Path, option: str, further: set[str]) -> None:
    """No steps, no optimiser: the same plan, packed and reported; there is no curve to draw."""
    shutil.copytree(outputs / "cache", tmp_path / "cache")
    assert run_here(tmp_path, BOTH, "finetune.epochs=0", f"reconstruction={option}") is None
    folder = run_folder(tmp_path)
    found = record(folder / "report.json", RunReport)
    assert found.plan == report.plan and [row.method for row in found.rows] == [row.method for row in report.rows]
    assert [stage for stage, again in reused(folder).items() if again] == [
        "float_network",
        "float_network/accuracy",
        "analysis",
    ]
    assert read_json(folder / "finetune" / "history.json") == []
    assert {path.name for path in (folder / "figures").iterdir()} == {"sensitivity.png", "frontier.png"}
    stages = {row["stage"].split("/")[0] for row in read_metrics(folder)}
    assert "finetuning" not in found.paths and stages == {"float_network", "analysis"} | further


def test_tuning_goes_on_from_the_reconstruction(outputs: Path, tmp_path: Path) -> None:
    """What is trained around the codes is made anew by its own options, the reconstruction by none of them."""
    shutil.copytree(outputs / "cache", tmp_path / "cache")
    for epochs, lr in ((1, 0.001), (2, 0.01)):
        options = f"tuning.epochs={epochs}", "tuning.num_samples=32", "tuning.batch_size=16", f"tuning.lr={lr}"
        assert run_here(tmp_path, BOTH, "finetune.epochs=0", "reconstruction=descent", *options) is None
    *_, last = sorted((tmp_path / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    stages = reused(last)
    assert stages["reconstruction"] and stages["reconstruction/direct"]
    assert not stages["tuning"] and not stages["tuning/direct"]
    rows = [row for row in read_metrics(last) if row["stage"] == "tuning"]
    assert [row["step"] for row in rows] == [0, 1, 2] and {row["images"] for row in rows} == {32}
    assert len(finished(tmp_path, "reconstruction")) == 2 and len(finished(tmp_path, "tuning")) == 4


def test_tuning_alone_asks_for_a_reconstruction() -> None:
    """Which reconstruction=auto is, even where the network is fine-tuned afterwards."""
    assert isinstance(build_settings(compose_here("tuning.epochs=1")).reconstruction, Descent)


def test_allocation_goes_on_from_the_file_alone(first: Path, report: RunReport, tmp_path: Path) -> None:
    """Neither network nor data: the same plan from the sensitivity file, and any point of its frontier."""
    alone = ["stages=[allocation]", f"allocation.sensitivity={first / 'sensitivity.json'}"]
    assert run_here(tmp_path, *alone) is None
    folder = run_folder(tmp_path)
    assert folder.name.startswith("sensitivity-mixed-s0-")
    assert record(folder / "plan.json", BitPlan) == report.plan
    assert set(digests(folder)) == {
        *["config.yaml", "sensitivity.json", "plan.json", "frontier.json", "figures/frontier.png", "report.html"]
    }
    points = read_json(folder / "frontier.json")["points"]
    assert len(points) > 10 and points == read_json(first / "frontier.json")["points"]
    assert run_here(tmp_path / "other", *alone, f"bits.target={points[7]['target']}") is None
    taken = record(run_folder(tmp_path / "other") / "plan.json", BitPlan)
    assert taken.cost.w_comp == points[7]["target"] and taken.objective <= points[7]["objective"] * (1 + 1e-9)


def test_plan_tells_how_it_was_found(report: RunReport, first: Path) -> None:
    plan = report.plan
    (use,) = plan.limits
    assert (use.unit, use.target) == ("w_comp", 10.6) and 0 <= use.slack == use.reached - 10.6
    assert plan.gap is not None and plan.gap < 1e-9 and plan.score == "eigenvalue"
    assert plan.confidence is not None and plan.confidence.draws == 10
    packed = (first / "model.safetensors").stat().st_size
    assert plan.cost.packed_bytes is not None and 0.99 * plan.cost.packed_bytes < packed <= plan.cost.packed_bytes


def test_plans_are_compared_and_taken_back(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, direct = first / "plan.json", first / "direct" / "plan.json"
    alone = ["stages=[allocation]", f"allocation.sensitivity={first / 'sensitivity.json'}"]
    assert run_here(tmp_path, *alone, "bits=manual", f"bits.plan={mine}") is None
    back = run_folder(tmp_path) / "plan.json"
    assert record(back, BitPlan).precisions == record(mine, BitPlan).precisions
    capsys.readouterr()
    assert run_script("compare_plans.py", mine, back) is None
    assert "11 of 11 blocks have the same bits in both" in capsys.readouterr().out
    assert run_script("compare_plans.py", mine, direct) is None
    table = capsys.readouterr().out
    assert re.search(r"conv1 +\| \d / 4 +\| 8 / 4", table) and re.search(r"w_comp +\| 10\.6\d* +\| 10\.\d+", table)
    assert "cannot be used" in str(run_script("compare_plans.py", mine, first / "report.json"))
    assert "type: python scripts/compare_plans.py" in str(run_script("compare_plans.py", mine))


def test_each_stage_builds_on_the_cache(tmp_path: Path) -> None:
    """Stages asked for one after another; then another budget, which needs no second analysis."""
    message = run_here(tmp_path, "stages=[finetune]")
    assert message is not None and len(message.splitlines()) == 1
    for word in ("error: ", "stages=['finetune']", "analysis", "not in the cache", "give stages="):
        assert word in message
    assert not any((tmp_path / "cache").rglob("manifest.json")), "work was done before the error"

    assert run_here(tmp_path, "stages=[analysis]") is None
    folder = run_folder(tmp_path)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"float_network", "analysis"}
    assert {"sensitivity.json", "config.yaml"} <= set(digests(folder)) and not (folder / "plan.json").exists()

    assert run_here(tmp_path, "stages=[analysis,allocation]") is None
    assert (folder / "plan.json").is_file() and not finished(tmp_path, "finetune")

    assert run_here(tmp_path, "stages=[finetune]") is None
    assert (folder / "finetune" / "network.pt").is_file() and not finished(tmp_path, "export")

    assert run_here(tmp_path, "bits.target=10") is None
    (other,) = set((tmp_path / "runs").iterdir()) - {folder}
    found = reused(other)
    assert [stage for stage in found if found[stage]] == UPSTREAM
    assert len(finished(tmp_path, "analysis")) == 1
    assert record(other / "plan.json", BitPlan).cost.w_comp < record(folder / "plan.json", BitPlan).cost.w_comp


def test_validation_holds_every_score_against_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Correlations by SciPy on what the run wrote; nothing is measured twice, also not by a run with another solver."""
    small = "analysis.num_samples=4"
    few = (
        *(small, "analysis.activations=true", "validate.num_samples=30", "validate.bit_widths=[2,8]"),
        *("validate.draws=20", "validate.solvers=[power,lanczos,gradient,random]", "validate.scores=[kl]"),
        "validate.plans=0",
    )
    message = run_here(tmp_path, "stages=[validate]", *few)
    assert message is not None and "leaves out analysis" in message and "['analysis', 'validate']" in message
    assert not any((tmp_path / "cache").rglob("manifest.json"))

    assert run_here(tmp_path, "stages=[analysis,validate]", *few) is None
    folder = run_folder(tmp_path)
    assert not (folder / "plan.json").exists()
    assert (folder / "figures" / "validation.png").stat().st_size > 10_000
    result = record(folder / "validation.json", Validated)
    names = [(score.kind, score.name) for score in result.scores]
    assert names == [
        *(("weights", name) for name in ("power", "lanczos", "gradient", "random", "kl", "relative_error", "error")),
        *(("activations", name) for name in ("trace", "kl", "error")),
    ]
    assert len(result.truth.increases) == 2 * (len(BLOCKS) + len(BLOCKS) - 1) and result.truth.num_samples == 30
    for found in result.correlations:
        increases = [r for r in result.truth.increases if r.kind == found.kind and found.bits in (None, r.bits)]
        score = next(s for s in result.scores if (s.kind, s.name) == (found.kind, found.score))
        predicted = [score.omegas[rise.block][rise.bits] for rise in increases]
        rho = spearmanr(predicted, [rise.kl for rise in increases]).statistic
        assert found.spearman == pytest.approx(rho) and found.num_points == len(increases)
        assert found.interval is not None and -1 <= found.interval[0] <= found.interval[1] <= 1
    sensitivity = record(folder / "sensitivity.json", Sensitivity)
    lanczos, error = (next(s for s in result.scores if s.name == name) for name in ("lanczos", "error"))
    for row in sensitivity.rows:
        for bits in (2, 8):
            assert lanczos.omegas[row.block.name][bits] == pytest.approx(
                max(row.eigenvalue.value, 0) * row.weight_errors[bits]
            )
            assert error.omegas[row.block.name][bits] == row.weight_errors[bits]
    assert all(score.seconds is not None and score.gradient_equivalents for score in result.scores[:7])
    stages = [row["stage"] for row in read_metrics(folder)]
    assert stages.count("validate") == len(result.truth.increases) and stages.count("analysis/power") == len(BLOCKS)
    analyses = len(finished(tmp_path, "analysis"))
    assert analyses == 6  # with activations, each of the four solvers by weights alone, and kl

    table = capsys.readouterr().out
    assert table.count("| weights     | ") == 7 and "above 2 standard errors" in validation_table(result)
    assert run_here(tmp_path, "stages=[validate,analysis,allocation]", *few, "validate.draws=10") is None
    assert "validate: found in the cache" in capsys.readouterr().out
    assert run_here(tmp_path, "stages=[analysis]", "solver=power", "solver.max_iterations=100", small) is None
    assert len(finished(tmp_path, "analysis")) == analyses and len(finished(tmp_path, "validate")) == 1


def test_sweep_analyses_once_for_each_seed(tmp_path: Path) -> None:
    process = run_apart(tmp_path, "-m", "finetune.max_steps=1", "bits.target=8,13", "seed=0,1")
    assert process.returncode == 0, process.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    jobs = [path for path in sweep.iterdir() if path.is_dir()]
    assert len(jobs) == 4
    assert len(finished(tmp_path, "analysis")) == 2
    assert len(finished(tmp_path, "float_network")) == 4  # a network and its accuracy for each seed
    assert sorted(reused(job)["analysis"] for job in jobs) == [False] * 2 + [True] * 2
    table = (sweep / "table.md").read_text()
    assert f"Table of all jobs: {sweep / 'table.html'}" in process.stdout
    assert process.stdout.count("\n| bits.target=") == 4  # one short line for each job
    labels = [(target, seed) for target in ("8", "13") for seed in ("0", "1")]
    assert re.findall(r"bits\.target=(\d+) seed=(\d)", table) == labels
    assert table.count("| HAWQ ") == table.count("| float ") == 4
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "multirun"}


def test_the_best_network_is_exported_without_training_again(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a curve that only falls, the best network is the first one that was measured with all blocks quantised."""
    shutil.copytree(outputs / "cache", tmp_path / "cache")
    falling = itertools.count(100.0, -1.0)
    monkeypatch.setattr(Inputs, "test_accuracy", lambda *_, **__: next(falling))
    steps = ("finetune.max_steps=4", "finetune.evaluations=4")
    assert run_here(tmp_path, *steps) is None
    last = run_folder(tmp_path)
    assert run_here(tmp_path, *steps, "finetune.keep=best") is None
    (best,) = set((tmp_path / "runs").iterdir()) - {last}
    assert (reused(best)["finetune"], reused(best)["export"]) == (True, False)
    for folder, name in ((last, "network.pt"), (best, "best.pt")):
        bias = torch.load(folder / "finetune" / name, weights_only=True)["fc.bias"]
        assert torch.equal(load_file(folder / "model.safetensors")["floats"][-len(bias) :], bias)
    assert (last / "model.safetensors").read_bytes() != (best / "model.safetensors").read_bytes()
