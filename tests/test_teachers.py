"""Other networks that teach in place of the float one: what they are shown and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Fresh, build, samples
from runs import run_here
from torch import nn
from torch.nn import functional as F
from tuning import BATCHES, CALIBRATION, prepared, same_state

from hawq import Ensemble
from hawq.errors import UserError
from hawq.finetuning import FineTuning, Renormalized, finetune, soft_loss
from hawq.records import Normalization

NORMALIZATIONS = st.builds(
    Normalization,
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.05, 1)] * 3),
)


def normalised(images: torch.Tensor, how: Normalization) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=images.dtype)[:, None, None] for values in (how.mean, how.std))
    return (images - mean) / std


@settings(deadline=None)
@given(own=NORMALIZATIONS, other=NORMALIZATIONS)
def test_a_teacher_sees_images_normalised_as_its_own(own: Normalization, other: Normalization) -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    seen = Renormalized(nn.Identity(), own, other)(normalised(images, other))
    torch.testing.assert_close(seen, normalised(images, own), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("residual",), ("residual", "branches", "depthwise")], ids=len)
def test_an_ensemble_gives_the_mean_of_its_logits(names: tuple[str, ...]) -> None:
    networks, (inputs, _) = [build(name).eval() for name in names], samples(6)
    expected = sum(network(inputs) for network in networks) / len(networks)
    torch.testing.assert_close(Ensemble(networks)(inputs), expected)


def test_an_ensemble_reads_main_outputs() -> None:
    class Auxiliary(nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs, 100 * inputs

    inputs = torch.rand(4, 3)
    torch.testing.assert_close(Ensemble([Auxiliary(), nn.Identity()])(inputs), inputs)


def test_an_ensemble_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        Ensemble([])


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_finetuning_learns_from_the_teacher_it_is_given(weight: float) -> None:
    model, sensitivity, plan = prepared()
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(BATCHES[0][0][0].numel(), 3)).train()
    before = [parameter.clone() for parameter in teacher.parameters()]
    heard = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        heard.append((outputs.detach(), F.cross_entropy(outputs, targets)))
        return heard[-1][1]

    wanted = FineTuning(max_steps=1, distillation=weight, temperature=3.0)
    _, history = finetune(model, sensitivity, plan, Fresh(BATCHES), CALIBRATION, wanted, loss=loss, teacher=teacher)
    ((outputs, hard),) = heard
    soft = soft_loss(outputs, teacher(BATCHES[0][0]), 3.0)
    assert history[0]["loss"] == pytest.approx(float(((1 - weight) * hard + weight * soft).detach()))
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    assert teacher.training


def test_another_teacher_leads_to_another_network() -> None:
    wanted = FineTuning(max_steps=3, distillation=0.5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(BATCHES[0][0][0].numel(), 3))
    arguments = (*prepared(), Fresh(BATCHES), CALIBRATION, wanted)
    own, parent, other = (finetune(*arguments, teacher=one)[0] for one in (None, arguments[0], teacher))
    assert same_state(own, parent)
    assert not same_state(own, other)


def test_outputs_of_another_shape_are_refused() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(BATCHES[0][0][0].numel(), 7))
    with pytest.raises(UserError, match=re.escape("the teacher's of shape (8, 7): give distillation=0")):
        finetune(*prepared(), Fresh(BATCHES), CALIBRATION, FineTuning(max_steps=1), teacher=teacher)


# ---------- train.py ----------

ALONE = (
    "finetune.max_steps=2",
    "bits=uniform",
    "bits.weights=4",
    "stages=[analysis,allocation,finetune,export,report]",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a run on the digits, which trains the float network that teaches in these tests."""
    folder = tmp_path_factory.mktemp("teachers")
    assert run_here(folder, *ALONE) is None
    return folder


@pytest.fixture(scope="module")
def checkpoint(outputs: Path) -> Path:
    (found,) = outputs.glob("cache/float_network/*/float.safetensors")
    return found


def taught(checkpoint: Path, name: str = "a", model: str = "resnet20") -> tuple[str, str]:
    return f"+model@teachers.{name}={model}", f"teachers.{name}.checkpoint={checkpoint}"


def keys(outputs: Path) -> list[str]:
    """Of the trained network in every run folder, in the order in which they were made."""
    reports = sorted(outputs.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime)
    stages = [json.loads(path.read_text())["stages"] for path in reports]
    return [next(row["key"] for row in rows if row["stage"] == "finetune") for rows in stages]


def test_teachers_are_part_of_the_key_and_their_names_are_not(
    outputs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(outputs, *ALONE, *taught(checkpoint)) is None
    assert re.search(r"accuracy of the teachers: \d+\.\d\d %", capsys.readouterr().out)
    assert run_here(outputs, *ALONE, *taught(checkpoint, "b")) is None
    assert "finetune: found in the cache" in capsys.readouterr().out
    assert run_here(outputs, *ALONE, *taught(checkpoint, "b"), *taught(checkpoint, "c")) is None
    first, one, renamed, two = keys(outputs)
    assert one == renamed
    assert len({first, one, two}) == 3


def test_a_teacher_worse_than_the_float_network_is_told(
    outputs: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(checkpoint, "pt") as file:
        facts = file.metadata()
    state = {name: torch.zeros_like(value) for name, value in load_file(checkpoint).items()}
    save_file(state, tmp_path / "zeros.safetensors", facts)
    options = (f"model.checkpoint={checkpoint}", *taught(tmp_path / "zeros.safetensors"))
    assert run_here(outputs, *ALONE, *options) is None
    assert "note: that is less than the float network's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("+model@teachers.a=resnet20",), "teachers.a.checkpoint is not set, and an untrained network teaches nothing"),
        (("+model@teachers.a=resnet20", "teachers.a.checkpoint=/nowhere"), "teachers.a.checkpoint=/nowhere does not"),
        (
            ("+model@teachers.a=resnet20", "teachers.a.name=nothing"),
            "teachers.a.name='nothing' is not in timm's registry",
        ),
        (("+model@teachers.a=resnet20", "teachers.a.input_size=3"), "teachers.a.input_size=3 is out of range"),
        (("+model@teachers.a=nothing",), "model=nothing is not an option"),
        (
            ("teachers.a=resnet20",),
            "teachers.a is not chosen yet: type +model@teachers.a=resnet20 teachers.a.checkpoint",
        ),
        (("+model@teachers.a=resnet20", "teachers.a.chekpoint=x"), "did you mean teachers.a.checkpoint?"),
        (("teachers.b.checkpoint=x",), "teachers.b is not chosen yet: type +model@teachers.b=resnet20"),
        (("++teachers=3",), "teachers=3 is no mapping of names to networks"),
        (("+model@teachers=resnet20",), "is no mapping of names to networks"),
        (("+teachers.a=3",), "teachers.a=3 is no network"),
        (("TAUGHT", "finetune.distillation=0"), "teachers have no effect with finetune.distillation=0"),
        (("TAUGHT", "finetune.epochs=0"), "teachers have no effect with no fine-tuning"),
        (("TAUGHT", "finetune.max_steps=0"), "teachers have no effect with no fine-tuning"),
    ],
    ids=str,
)
def test_what_cannot_teach_is_refused_before_any_work(
    options: tuple[str, ...], sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    given = [part for one in options for part in (taught(checkpoint) if one == "TAUGHT" else (one,))]
    error = run_here(tmp_path, *ALONE, *given)
    assert error is not None and sentence in error and "\n" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_teacher_of_another_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    options = (
        *taught(tmp_path / "vit.safetensors", model="timm"),
        "teachers.a.name=vit_tiny_patch16_224",
        "teachers.a.mean=[0.5,0.5,0.5]",
        "teachers.a.std=[0.5,0.5,0.5]",
    )
    error = run_here(tmp_path / "out", *ALONE, *options)
    assert error is not None and "vit_tiny_patch16_224 cannot take the model's images of 8×8" in error
