"""The stage `reconstruction` in whole runs: what it leaves behind, what is found again, what goes on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import compose_here, read_json, run_folder, run_here

from hawq.components import component_facts
from hawq.experiment.config.build import build_settings
from hawq.experiment.config.demands import check_demands
from hawq.experiment.metrics import read_metrics
from hawq.export import load
from hawq.finetuning import ORDERS
from hawq.models.resnet_cifar import resnet20
from hawq.quantization import weight_quantizer

SHORT = ("reconstruction=brecq", "reconstruction.iterations=2", "reconstruction.num_samples=8")
UNITS = ["conv1", *[f"layer{stage}.{unit}" for stage in (1, 2, 3) for unit in (0, 1, 2)], "fc"]


def stages_of(folder: Path) -> dict[str, bool]:
    """Stage → whether its result came from the cache."""
    return {row["stage"]: row["reused"] for row in read_json(folder / "report.json")["stages"]}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the direct baseline that trains nothing."""
    folder = tmp_path_factory.mktemp("reconstructed")
    assert run_here(folder, *SHORT, "baseline=direct", "finetune.epochs=0") is None
    return folder


def test_both_networks_are_reconstructed_and_packed_bit_for_bit(outputs: Path) -> None:
    folder = run_folder(outputs)
    stages = stages_of(folder)
    assert [name for name in stages if name.startswith("reconstruction")] == ["reconstruction/direct", "reconstruction"]
    rows = [row for row in read_metrics(folder) if row["stage"] == "reconstruction"]
    assert [(row["step"], row["unit"]) for row in rows] == list(enumerate(UNITS, 1))
    assert all(row["error"] <= row["nearest"] for row in rows)
    loaded = load(folder / "model.safetensors", resnet20())
    state = torch.load(folder / "finetune" / "network.pt")
    better = {row["unit"] for row in rows if row["error"] < row["nearest"]}
    assert better
    for name, layer in loaded.named_modules():
        quantizer = weight_quantizer(layer)
        if quantizer is not None:
            weight = state[f"{name}.parametrizations.weight.original"]
            assert torch.equal(layer.weight, quantizer(weight)), name
            on_grid = any(name == unit or name.startswith(f"{unit}.") for unit in better)
            assert torch.equal(layer.weight, weight) == on_grid, name


def test_fine_tuning_goes_on_from_it(outputs: Path) -> None:
    first = run_folder(outputs)
    assert run_here(outputs, *SHORT, "baseline=direct", "finetune.max_steps=2") is None
    (folder,) = (path for path in (outputs / "runs").iterdir() if path != first)
    stages = stages_of(folder)
    assert stages["reconstruction"] and stages["reconstruction/direct"] and not stages["finetune"]
    assert [row["phase"] for row in read_json(folder / "finetune" / "history.json")] == [0, 0]  # all blocks at once


def test_it_must_be_named_where_it_is_not_in_the_cache(outputs: Path) -> None:
    message = run_here(outputs, *SHORT, "reconstruction.iterations=3", "stages=[finetune]")
    assert message is not None and "give stages=['reconstruction', 'finetune']" in message


@pytest.mark.parametrize("option", ["none", "descent", "adaround", "brecq", "qdrop"])
def test_every_option_is_a_component(option: str) -> None:
    settings = build_settings(compose_here(f"reconstruction={option}"))
    assert component_facts(settings.reconstruction)["component"] == f"reconstruction/{option}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "none"),
        (("finetune.epochs=0",), "descent"),
        (("finetune.max_steps=0",), "descent"),
        (("finetune.epochs=0.001",), "none"),
        (("finetune.epochs=0", "reconstruction=none"), "none"),
        (("finetune.epochs=0", "reconstruction=brecq"), "brecq"),
        (("reconstruction=descent",), "descent"),
        (("experiment=paper/imagenet", "dataset.path=none"), "none"),
        (("experiment=paper/cifar10", "reconstruction=qdrop"), "qdrop"),
    ],
    ids=str,
)
def test_descent_is_what_a_run_does_that_trains_nothing(overrides: tuple[str, ...], expected: str) -> None:
    settings = build_settings(compose_here(*overrides))
    assert component_facts(settings.reconstruction)["component"] == f"reconstruction/{expected}"


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "joint"])
def test_an_order_that_could_not_show_is_refused(tmp_path: Path, order: str) -> None:
    message = run_here(tmp_path, "reconstruction=descent", f"finetune.order={order}")
    assert message is not None
    assert f"reconstruction=descent quantises all blocks before training, so finetune.order={order} has" in message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune.order=descending",),
        ("finetune.order=descending", "finetune.epochs=0"),
        ("finetune.order=descending", "finetune.max_steps=0", "reconstruction=brecq"),
        ("finetune.order=descending", "reconstruction=brecq", "stages=[reconstruction]"),
        ("finetune.order=joint", "reconstruction=brecq"),
        ("experiment=paper/table1", "dataset.path=none", "finetune.epochs=0"),
    ],
    ids=str,
)
def test_other_orders_pass(overrides: tuple[str, ...]) -> None:
    check_demands(build_settings(compose_here(*overrides)))
