"""The menu in conf/: every option can be ordered, says each default once, and builds nothing it should not."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict
from runs import CONF, compose_here, run_here

from hawq.experiment.config.build import build_component, build_settings
from hawq.experiment.config.explain import modernise, with_section
from hawq.experiment.config.options import COMPONENTS, TEACHERS, RunOptions, Settings

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
    files = sorted(path for path in CONF.rglob("*.yaml") if path.parent not in (CONF, CONF / "sweep"))
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
    assert groups == {*COMPONENTS, "experiment"} - {"analysis", "allocation", "search", "tuning", "validate"}


@pytest.mark.parametrize("choice", options())
def test_option_builds_all_components_and_lists_their_fields(choice: str) -> None:
    config = compose_option(choice)
    settings = build_settings(config)
    for name, component in components(settings).items():
        if name == "solver" and "AutoSolver" in config.solver._target_:
            continue  # another one takes its place: see below
        listed = set(config[name]) - {"_target_"}
        assert listed == {field.name for field in dataclasses.fields(component) if field.init}, name


@pytest.mark.parametrize(
    ("overrides", "solver", "score"),
    [
        ((), "auto", "kl"),
        (("bits=hawq_v1",), "lanczos", "eigenvalue"),
        (("bits=hawq_v2",), "trace", "trace"),
        (("bits.score=eigenvalue",), "lanczos", "eigenvalue"),
        (("bits.score=kl+trace",), "trace", "kl+trace"),
        (("bits.score=eigenvalue+trace",), "ggn", "eigenvalue+trace"),
        (("bits.score=proxy",), "gradient", "proxy"),
        (("bits.score=error",), "auto", "error"),
        (("bits=uniform",), "auto", None),
        (("bits=haq",), "auto", None),
        (("bits=uniform", "analysis.landscape=true"), "lanczos", None),
        (("solver=ggn",), "ggn", "auto"),
        (("solver=none",), "none", "auto"),
    ],
    ids=str,
)
def test_the_solver_follows_from_the_score_unless_it_is_given(overrides, solver, score) -> None:
    settings = build_settings(compose_here(*overrides, "solver.memory_limit_gib=5" if solver != "none" else "seed=1"))
    named = build_settings(compose_here(f"solver={solver}")).solver
    assert type(settings.solver) is type(named) and getattr(settings.bits, "score", None) == score
    if solver != "none":
        assert settings.solver == dataclasses.replace(named, memory_limit_gib=5.0)


def test_config_lists_the_options_of_a_run() -> None:
    own = set(compose_here()) - {"hydra"}
    assert own == {*COMPONENTS, TEACHERS, *(field.name for field in dataclasses.fields(RunOptions))}


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
    assert len({plain, folder("seed=1"), folder("bits.target=8"), folder("finetune.epochs=2")}) == 4


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
        "hawq.experiment.table.STAGES",
        "hawq.blocks.find_blocks",
        "hawq.experiment.config.targets.pkgutil.resolve_name",
        "hawq.experiment.pipeline.Path",
        "hawq.experiment.prepare.Inputs",
        "hawq.experiment.tracking.NoTracking",
        "hawq.quantization.LSQ",
        "hawq.records.Block",
        "torch.nn.Identity",
        "torch.hub.load",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    ],
)
def test_only_a_component_of_the_section_is_built(target: str) -> None:
    with pytest.raises(ValueError, match=r"solver\._target_=") as caught:
        build_component("solver", {"_target_": target, "entrypoint": "/bin/sh"})
    assert target in str(caught.value)


def test_nothing_is_imported_that_is_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sneaky.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Solver: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="not allowed"):
        build_component("solver", {"_target_": "sneaky.Solver"})
    assert not (tmp_path / "imported").exists() and "sneaky" not in sys.modules


def test_nothing_inside_a_component_is_built(tmp_path: Path) -> None:
    sneaked_in = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    node = {"_target_": "hawq.allocation.IntegerProgram", "limits": {"bytes": sneaked_in}}
    with pytest.raises(ValueError, match=r"bits.limits.bytes._target_=os.mkdir stands inside a component"):
        build_component("bits", node)
    assert not (tmp_path / "made").exists()


OWN = """
import dataclasses
from hawq.curvature import PowerIteration

class Patient(PowerIteration):
    pass

class NoDataclass:
    pass

@dataclasses.dataclass
class NoSolver:
    speed: int = 1
    def __post_init__(self):
        raise RuntimeError("was built")
"""


def test_the_command_line_may_allow_a_module_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_solvers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ["solver=power", "solver._target_=my_solvers.Patient", "solver.max_iterations=500"]
    with pytest.raises(ValueError, match="type allowed_targets="):
        build_settings(compose_here(*overrides))
    assert "my_solvers" not in sys.modules
    allowed = "allowed_targets=[hawq.,my_solvers.]"
    solver = build_settings(compose_here(*overrides, allowed)).solver
    assert (type(solver).__name__, solver.max_iterations) == ("Patient", 500)
    for name, complaint in (("NoDataclass", "is no dataclass"), ("NoSolver", "lacks name, reads")):
        with pytest.raises(ValueError, match=complaint):
            build_component("solver", {"_target_": f"my_solvers.{name}"}, ["my_solvers."])


def test_a_file_cannot_allow_anything() -> None:
    config = compose_here("solver=power", "solver._target_=torch.nn.Identity")
    with open_dict(config):
        config.allowed_targets = ["hawq.", "torch."]
    with pytest.raises(ValueError, match=r"torch.nn.Identity is not allowed"):
        build_settings(config)


HYDRA_PARTS = {
    "callback": "callbacks: {x: {_target_: subprocess.Popen, args: [/bin/true]}}",
    "callback by interpolation": "callbacks: '${oc.create:{x:{_target_:subprocess.Popen}}}'",
    "launcher": "launcher: {_target_: mine.Launcher}",
    "sweeper": "sweeper: {_target_: mine.Sweeper}",
    "handler": "job_logging: {handlers: {console: {class: mine.Handler}}}",
    "factory": "job_logging: {formatters: {simple: {(): os.system, command: 'true'}}}",
    "object of another module": "hydra_logging: {handlers: {console: {stream: ext://antigravity.x}}}",
    "logging by interpolation": "job_logging: {handlers: '${bits}'}",
    "environment": "job: {env_set: {LD_PRELOAD: /tmp/x.so}}",
}


@pytest.mark.parametrize("content", HYDRA_PARTS.values(), ids=HYDRA_PARTS)
def test_hydras_own_part_names_known_things_alone(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\nhydra:\n  {content}\n")
    message = run_here(tmp_path / "outputs", f"--config-dir={tmp_path / 'conf'}", "experiment=mine")
    assert message is not None and message.startswith("error: hydra.") and len(message.splitlines()) == 1, message
    assert not (tmp_path / "outputs").exists()


def test_secrets_of_the_environment_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    config = compose_here("tracking.project=${oc.env:MY_SECRET}", "bits=manual", "+bits.weights={conv1: 8}")
    with open_dict(config):
        config.bits.label = "${tracking.project} again"
    settings = build_settings(config)
    assert settings.tracking.project == "hunter2" and settings.bits.label == "hunter2 again"
    assert "hunter2" not in repr(settings.resolved)
    assert settings.resolved["bits"]["label"] == "${oc.env:MY_SECRET} again"


RENAMED_WORDS = {
    "training.epochs=3": "float_network.epochs=3",
    "training=default": "float_network=default",
    "+validation.widths=[2]": "+validate.bit_widths=[2]",
    "bits.widths=[4,8]": "bits.bit_widths=[4,8]",
    "finetune.epochs=3": "finetune.epochs=3",
    "model.name=training": "model.name=training",
    "trainings.epochs=3": "trainings.epochs=3",
    "-m": "-m",
}


@pytest.mark.parametrize(("typed", "meant"), RENAMED_WORDS.items())
def test_earlier_names_still_work_on_the_command_line(typed: str, meant: str) -> None:
    assert modernise([typed]) == [meant]


def test_earlier_classes_still_work() -> None:
    node = {"_target_": "hawq.allocation.Mixed", "target": 8.0}
    assert type(build_component("bits", node)).__name__ == "IntegerProgram"


@pytest.mark.parametrize(("key", "value"), [("finetune.lr", "nan"), ("analysis.save_every_seconds", "inf")])
def test_every_number_is_finite(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}={value}"):
        build_settings(compose_here(f"{key}={value}"))


COMPLAINTS = {
    "tolerance=2 is out of range: give 0 to 1": "solver.tolerance=2 is out of range: give 0 to 1",
    "rank=3 needs more: give max_products=5": "solver.rank=3 needs more: give solver.max_products=5",
    "block 'a' has none: give rank=1 or analysis.rank=2": "block 'a' has none: give solver.rank=1 or analysis.rank=2",
    "rank is no number": "solver.rank is no number",
    "the rank of a block is 3": "the rank of a block is 3",
    "/tmp/rank=1/x.json is damaged": "/tmp/rank=1/x.json is damaged",
    "rank.conv1=[9] is out of range": "solver.rank.conv1=[9] is out of range",
    "ranks=3": "ranks=3",
}


@pytest.mark.parametrize(("said", "told"), COMPLAINTS.items())
def test_complaints_of_the_library_name_the_section(said: str, told: str) -> None:
    assert with_section(said, "solver", ["tolerance", "rank", "max_products"]) == told
