"""A person's mistakes: one line that names what was given and what is allowed, before anything is made."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from runs import files_below, run_apart, run_here

import hawq.models  # noqa: F401 (registers resnet20 with timm)

HALF = "[0.5,0.5,0.5]"
ALONE = "stages=[allocation] allocation.sensitivity="

MISTAKES = {
    # Hydra's
    "group option": ("bits=mixd", ["bits=mixd", "did you mean mixed?", "uniform"]),
    "nested option": ("bits=paper/resnet", ["bits=paper/resnet ", "paper/resnet20"]),
    "experiment": ("experiment=smok", ["experiment=smok", "did you mean smoke?"]),
    "group": ("optimizer=adam", ["optimizer", "is not a key"]),
    "key of another option": ("bits.evaluations=5", ["bits.evaluations", "give bits=haq or bits=optuna or"]),
    "key of the only other option": ("deploy.profile=integer", ["deploy.profile", "give deploy=onnx too"]),
    "key": ("bits.targte=10", ["bits.targte", "did you mean bits.target?"]),
    "new key": ("+finetune.epochz=3", ["finetune.epochz", "epochs"]),
    "key without value": ("bits", ["'bits'", "missing EQUAL"]),
    "no option": ("solver=null", ["group"]),
    # wrong type
    "text for a number": ("finetune.epochs=many", ["finetune.epochs", "many"]),
    "fraction for a whole number": ("finetune.batch_size=0.5", ["finetune.batch_size", "0.5"]),
    "text for a list": ("stages=analysis", ["stages", "analysis", "list"]),
    "number for a list": ("bits.candidates=8", ["bits.candidates", "8", "list"]),
    "null": ("bits.target=null", ["bits.target", "None"]),
    # out of range
    "negative": ("bits.target=-1", ["bits.target=-1", "positive"]),
    "not a number": ("bits.target=nan", ["bits.target=nan", "positive"]),
    "activations": ("bits.activations=lots", ["bits.activations='lots'", "mixed"]),
    "unit": ("bits.unit=megabytes", ["'megabytes'", "w_comp, average_bits, uniform_bits, bytes, bops"]),
    "level": ("bits=hawq_v3 bits.level=2", ["bits.level=2", "0 to 1"]),
    "points": ("allocation.frontier_points=1", ["allocation.frontier_points=1", "2 or more", "or 0"]),
    "draws": ("allocation.confidence_draws=-1", ["allocation.confidence_draws=-1", "0 to"]),
    "width": ("bits.candidates=[0,4]", ["bits.candidates=[0, 4]", "1 to 8"]),
    "tuning rate": ("tuning.epochs=2 tuning.lr=2", ["tuning.lr=2", "0 to 1"]),
    "tuning temperature": (
        "tuning.epochs=2 tuning.loss=squared tuning.temperature=4",
        ["tuning.temperature=4", "no effect", "give tuning.loss=kl"],
    ),
    "tuning as a group": ("tuning=fast", ["tuning='fast'", "tuning.KEY=...", "conf/config.yaml"]),
    "allocation as a group": ("allocation=fast", ["allocation='fast'", "allocation.KEY=...", "conf/config.yaml"]),
    "analysis as a group": ("analysis=fast", ["analysis='fast'", "analysis.KEY=...", "conf/config.yaml"]),
    "tuning of nothing": ("tuning.epochs=2 reconstruction=none", ["tuning.epochs=2", "give reconstruction=descent"]),
    "share": ("finetune.final_fraction=2", ["finetune.final_fraction=2", "0 to 1"]),
    "samples": ("analysis.num_samples=0", ["analysis.num_samples=0", "1 or more"]),
    "tried width": ("validate.bit_widths=[4,9]", ["validate.bit_widths=[4, 9]", "[1, 2, 3, 4, 5, 6, 7, 8]"]),
    "tried images": ("validate.num_samples=1", ["validate.num_samples=1", "2 to"]),
    "compared solver": ("validate.solvers=[lanczo]", ["solver=lanczo", "did you mean lanczos?", "fisher"]),
    "choice": ("solver.start_from=zero", ["solver.start_from='zero'", "random", "gradient", "subset"]),
    "stage": (
        "stages=[analyse]",
        ["analyse", "'allocation', 'reconstruction', 'tuning', 'finetune', 'export', 'deploy', 'report'"],
    ),
    "seed": ("seed=-1", ["seed=-1", "0 to"]),
    "device": ("device=tpu", ["device='tpu'", "auto, cpu, cuda or cuda:N"]),
    "absent device": ("device=cuda:99", ["device='cuda:99'", "not on this machine"]),
    "pattern": ("model.blocks=['(']", ["'('", "regular expression"]),
    "blocks": ("model.blocks=3", ["model.blocks=3", "block, layer"]),
    # cannot be met
    "compression": ("bits.target=40", ["bits.target=40", "4 to 16 w_comp"]),
    "bytes": ("bits.target=100 bits.unit=bytes", ["bits.target=100", "network reaches", "bytes"]),
    "BOPS": ("bits.limits.bops=1000", ["bits.limits.bops=1000", "network reaches", "bops"]),
    "order": ("bits=hawq_v1 bits.target=40", ["bits.target=40", "4 to 16 w_comp"]),
    "latency without a table": ("bits.limits.latency_ms=3", ["bits.limits.latency_ms=3", "bits.latency="]),
    "override of no block": ("+bits.overrides={stem:[8]}", ["bits.overrides", "stem", "conv1"]),
    "tie of no block": ("bits.tied=[[conv1,stem]]", ["bits.tied", "stem", "conv1"]),
    # not there
    "data not named": ("dataset=imagefolder", ["dataset.path is not set", "dataset.path=..."]),
    "data": ("dataset=cifar10 dataset.path={tmp}/no.npz", ["{tmp}/no.npz does not exist", "train_images"]),
    "checkpoint": ("model.checkpoint={tmp}/no.pt", ["model.checkpoint={tmp}/no.pt does not exist"]),
    "plan": ("bits=manual bits.plan={tmp}/no.json", ["bits.plan={tmp}/no.json does not exist", "plan.json"]),
    "latency table": ("bits.latency={tmp}/no.csv", ["bits.latency={tmp}/no.csv does not exist"]),
    "sensitivity": (f"{ALONE}{{tmp}}/no.json", ["allocation.sensitivity={tmp}/no.json does not exist"]),
    "model": ("model.name=resnet21", ["model.name='resnet21'", "resnet20"]),
    "pictures": ("dataset=imagenet dataset.path={tmp}/none", ["{tmp}/none", "train/<wnid>", "val/<wnid>"]),
    "publisher": ("model.source=keras model.checkpoint=x", ["model.source='keras'", "timm, torchvision, pytorchcv"]),
    # there, but not what is needed
    "pictures to train on": (
        "dataset=imagefolder dataset.path={tmp}/pictures",
        ["imagefolder has no training images", "analysis", "stages=[]"],
    ),
    "outputs below a file": ("outputs={tmp}/text.npz/outputs", ["{tmp}/text.npz/outputs"]),
    "data in another format": ("dataset=cifar10 dataset.path={tmp}/text.npz", ["{tmp}/text.npz is not an .npz"]),
    "checkpoint in another format": (
        f"model.checkpoint={{tmp}}/text.npz model.mean={HALF} model.std={HALF}",
        ["{tmp}/text.npz is not a file of plain weights"],
    ),
    "normalisation of one channel": (
        "model.checkpoint={tmp}/other.pt model.mean=[0.5] model.std=[0.5]",
        ["model.mean=(0.5,)", "[r,g,b] each"],
    ),
    "checkpoint without normalisation": ("model.checkpoint={tmp}/plain.pt", ["model.mean=[r,g,b]", "model.std"]),
    "checkpoint of another network": (
        f"model.checkpoint={{tmp}}/other.pt model.mean={HALF} model.std={HALF}",
        ["{tmp}/other.pt", "missing names", "fc.bias", "unexpected names", "head.bias"],
    ),
    "path that is too long": ("bits.latency=" + "x" * 5000, ["bits names a path that cannot be read", "too long"]),
    "checkpoint with a path that is too long": ("model.checkpoint=" + "x" * 5000, ["cannot be read", "too long"]),
    "latency table in another format": ("bits.latency={tmp}/text.npz", ["{tmp}/text.npz is not a latency table"]),
    "sensitivity in another format": (f"{ALONE}{{tmp}}/plan.json", ["{tmp}/plan.json cannot be used", "schema"]),
    "sensitivity and further stages": (
        "allocation.sensitivity={tmp}/plan.json",
        ["stands for model and data", "give stages=[allocation]"],
    ),
    "plan in another format": ("bits=manual bits.plan={tmp}/text.npz", ["bits.plan={tmp}/text.npz is not a plan"]),
    "plan for another network": (
        "bits=manual bits.plan={tmp}/plan.json",
        ["{tmp}/plan.json is a plan for another model", "missing blocks", "layer1.0", "unknown blocks", "stem"],
    ),
    # not allowed
    "target": ("solver._target_=os.system", ["solver._target_=os.system", "below hawq.", "allowed_targets="]),
    "target in disguise": (
        "solver._target_=hawq.experiment.config.targets.pkgutil.resolve_name",
        ["hawq.experiment.config.targets.pkgutil.resolve_name", "below hawq.", "allowed_targets="],
    ),
    "target that is not there": ("solver._target_=hawq.curvature.Powr", ["hawq.curvature.Powr", "does not exist"]),
}

EXPERIMENTS = {
    "key of a group": ("finetune:\n  epochz: 3", ["finetune.epochz", "did you mean", "epochs?"]),
    "key of the run": ("baselin: none", ["baselin", "did you mean baseline?"]),
    "option": ("defaults:\n  - override /bits: mixd", ["bits=mixd", "did you mean mixed?"]),
    "value": ("bits:\n  target: 40", ["bits.target=40", "4 to 16"]),
    "not YAML": ("bits: {target: [", ["mine.yaml"]),
}


AT_WORK = {
    "no trace": ("bits=hawq_v2", ["has no trace", "bits.score=eigenvalue"]),
    "no activation curvature": (
        "bits.activations=mixed analysis.activations=false",
        ["bits.activations=mixed", "analysis.activations=false"],
    ),
}


@pytest.mark.parametrize(("overrides", "fragments"), AT_WORK.values(), ids=AT_WORK)
def test_what_the_analysis_lacks_is_told_in_one_line(overrides: str, fragments: list[str], tmp_path: Path) -> None:
    message = run_here(tmp_path, "stages=[analysis,allocation]", *overrides.split())
    assert message is not None and message.startswith("error: ") and len(message.splitlines()) == 1
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that exist, and are not what is asked for."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "text.npz").write_text("hello")
    (folder / "pictures" / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "pictures" / "val" / "cat" / "0.png")
    weights = timm.create_model("resnet20").state_dict()
    weights["head.bias"] = weights.pop("fc.bias")
    torch.save(weights, folder / "other.pt")
    weights["fc.bias"] = weights.pop("head.bias")
    torch.save(weights, folder / "plain.pt")
    weights["fc.bias"] = weights["fc.bias"] * torch.nan
    torch.save(weights, folder / "nan.pt")
    (folder / "plan.json").write_text(json.dumps({"precisions": {"stem": {"weight_bits": 8, "activation_bits": 8}}}))
    return folder


def check(message: str | None, fragments: list[str], outputs: Path) -> None:
    assert message is not None, "the run went through"
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert files_below(outputs) == []


@pytest.mark.parametrize(("overrides", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_told_in_one_line(overrides: str, fragments: list[str], material: Path, tmp_path: Path) -> None:
    arguments = overrides.replace("{tmp}", str(material)).split()
    message = run_here(tmp_path / "outputs", *arguments)
    check(message, [fragment.replace("{tmp}", str(material)) for fragment in fragments], tmp_path / "outputs")


@pytest.mark.parametrize(("content", "fragments"), EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_mistake_in_an_experiment_file(content: str, fragments: list[str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    message = run_here(tmp_path / "outputs", f"--config-dir={tmp_path / 'conf'}", "experiment=mine")
    check(message, fragments, tmp_path / "outputs")


@pytest.mark.parametrize("mistake", ["group option", "key", "compression"])
def test_mistake_on_the_real_command_line(mistake: str, tmp_path: Path) -> None:
    overrides, fragments = MISTAKES[mistake]
    process = run_apart(tmp_path / "outputs", *overrides.split())
    assert process.returncode != 0 and process.stdout == ""
    check(process.stderr.rstrip("\n"), fragments, tmp_path / "outputs")


@pytest.mark.parametrize(
    ("sweep", "fragments"),
    [("seed=0,-1", ["seed=-1", "0 to"]), ("model=resnet20,resnt50", ["model=resnt50", "did you mean resnet50"])],
)
def test_sweep_is_checked_before_its_first_job(sweep: str, fragments: list[str], tmp_path: Path) -> None:
    message = run_here(tmp_path / "outputs", "-m", sweep)
    check(message, fragments, tmp_path / "outputs")


def test_checkpoint_that_holds_no_numbers_ends_in_one_line(material: Path, tmp_path: Path) -> None:
    checkpoint = [f"model.checkpoint={material / 'nan.pt'}", f"model.mean={HALF}", f"model.std={HALF}"]
    message = run_here(tmp_path / "outputs", *checkpoint)
    assert message is not None and message.startswith("error: ") and len(message.splitlines()) == 1
    assert "nan.pt" in message and "fc.bias holds NaN" in message


def test_mistake_leaves_an_existing_run_alone(tmp_path: Path) -> None:
    """A refused command must not take away what an earlier one wrote."""
    outputs = tmp_path / "outputs"
    assert run_here(outputs, "stages=[]") is None
    before = files_below(outputs)
    assert run_here(outputs, "stages=[]", "device=tpu") is not None
    assert files_below(outputs) == before != []


def test_a_full_disk_is_told_and_half_done_work_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no space left the path is named; nothing temporary stays, and the same command ends the run."""
    outputs, written = tmp_path / "outputs", itertools.count()

    def fsync(descriptor: int, real: Any = os.fsync) -> None:
        if next(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        message = run_here(outputs, "stages=[]")
    assert message is not None and message.startswith("error: ") and len(message.splitlines()) == 1, message
    assert "no space left" in message and str(outputs) in message and "again" in message
    assert not [path for path in outputs.rglob("*") if path.name.endswith(".tmp")]
    assert run_here(outputs, "stages=[]") is None


@pytest.mark.parametrize("given", ["outputs=", "outputs=' '"])
def test_outputs_need_a_folder(given: str, tmp_path: Path) -> None:
    process = run_apart(tmp_path / "outputs", given)
    assert process.returncode == 1 and process.stderr.startswith("error: outputs is empty"), process.stderr
