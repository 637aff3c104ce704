"""The menu in conf/: every option can be ordered, says each default once, and builds nothing it should not."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from runs import CONF, compose_here

from hawq.experiment.config import COMPONENTS, RunOptions, Settings, build_component, build_settings

ALLOWED = ("hawq.", "torch.", "timm.")

# What a user must add to some options before they can be built.
MANDATORY = {
    "model.name": "mobilenetv3_small_100",
    "dataset.path": "cifar10.npz",
    "dataset.name": "hfds/uoft-cs/cifar100",
    "dataset.num_classes": 100,
}
NEEDED = {"bits=manual": ["+bits.weights={conv1: 8}"]}


def options() -> list[str]:
    """group=option, for every file of conf/."""
    files = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
    names = [path.relative_to(CONF).with_suffix("").as_posix() for path in files]
    return [name.replace("/", "=", 1) for name in names]


def compose_option(choice: str) -> Any:
    """The config with one option chosen, and plausible values where it leaves them to the user."""
    missing = OmegaConf.missing_keys(compose_here(choice))
    given = [f"{key}={MANDATORY[key]}" for key in sorted(missing) if not key.startswith("hydra.")]
    return compose_here(choice, *NEEDED.get(choice, []), *given)


def components(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in COMPONENTS}


def test_every_group_has_options() -> None:
    groups = {choice.split("=")[0] for choice in options()}
    assert groups == {*COMPONENTS, "experiment"} - {"analysis", "allocation", "validation"}


@pytest.mark.parametrize("choice", options())
def test_option_builds_all_components_and_lists_their_fields(choice: str) -> None:
    config = compose_option(choice)
    settings = build_settings(config)
    for name, component in components(settings).items():
        listed = set(config[name]) - {"_target_"}
        assert listed == {field.name for field in dataclasses.fields(component)}, name


def test_config_lists_the_options_of_a_run() -> None:
    own = set(compose_here()) - {"hydra"}
    assert own == {*COMPONENTS, *(field.name for field in dataclasses.fields(RunOptions))}


def test_settings_say_what_was_asked_for() -> None:
    settings = build_settings(compose_here("bits=uniform", "bits.weights=5", "seed=7", "stages=[analysis]"))
    assert (settings.bits.weights, settings.options.seed, settings.options.stages) == (5, 7, ("analysis",))
    assert settings.resolved["bits"]["weights"] == 5
    assert settings.dataset.size == settings.model.small_input_size == 32


def test_run_folder_depends_on_what_decides_the_result() -> None:
    def folder(*overrides: str) -> str:
        return build_settings(compose_here("tracking=none", *overrides)).folder.name

    plain = folder()
    assert folder("device=cpu", "threads=1", "stages=[analysis]", "workers=1") == plain
    assert len({plain, folder("seed=1"), folder("bits.target=8"), folder("finetune.epochs=1")}) == 4


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "hawqish.Solver",
        "hawq",
        "hawq.",
        "hawq.nowhere.Solver",
        "hawq.curvature.PowerIteratio",
        "hawq.experiment.config.STAGES",
        "hawq.blocks.find_blocks",
        "hawq.experiment.config.pkgutil.resolve_name",
        "hawq.experiment.pipeline.Path",
        "hawq.experiment.config.instantiate",
        "torch.hub.load",
        "torch.os.system",
    ],
)
def test_only_classes_of_allowed_packages_are_built(target: str) -> None:
    with pytest.raises(ValueError, match=r"solver\._target_=") as caught:
        build_component("solver", {"_target_": target}, ALLOWED)
    assert target in str(caught.value)


@pytest.mark.parametrize("target", ["hawq.experiment.tracking.NoTracking", "torch.nn.Identity"])
def test_allowed_class_of_another_trade_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"something with name, reads, memory_limit_gib, start, .* is needed"):
        build_component("solver", {"_target_": target}, ALLOWED)


def test_nothing_outside_is_called_below_an_allowed_target(tmp_path: Path) -> None:
    sneaked_in = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    with pytest.raises(ValueError, match="solver"):
        build_component("solver", {"_target_": "torch.nn.Identity", "x": sneaked_in}, ALLOWED)
    assert not (tmp_path / "made").exists()


def test_user_may_allow_a_package_of_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from hawq.curvature import PowerIteration\n\nclass Patient(PowerIteration):\n    pass\n"
    (tmp_path / "my_solvers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ["solver=power", "solver._target_=my_solvers.Patient", "solver.max_iterations=500"]
    with pytest.raises(ValueError, match="extend allowed_targets"):
        build_settings(compose_here(*overrides))
    assert "my_solvers" not in sys.modules
    allowed = "allowed_targets=[hawq.,torch.,timm.,my_solvers.]"
    solver = build_settings(compose_here(*overrides, allowed)).solver
    assert (type(solver).__name__, solver.max_iterations) == ("Patient", 500)
