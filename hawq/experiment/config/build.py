"""From a composed config to built components; nothing below this file sees an object of Hydra or OmegaConf."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hawq.experiment.config.automatic import (
    is_automatic,
    reconstruction_for,
    solver_for,
    with_activations,
    with_best_score,
)
from hawq.experiment.config.explain import choosing_teacher, explain, in_section, refuse_unknown_keys, suggest
from hawq.experiment.config.fields import as_annotated, fits, wrong_type
from hawq.experiment.config.names import config_folder, plain, register_resolvers, shown
from hawq.experiment.config.options import COMPONENTS, FROM_FILE, TEACHERS, RunOptions, Settings
from hawq.experiment.config.targets import allowed_class, typed_targets


def build_settings(config: DictConfig) -> Settings:
    """Builds every component that the run needs, once, for the job that Hydra is running.

    Raises ValueError with one sentence for any wrong value.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    overrides = HydraConfig.get().overrides.task  # of this job alone, in a sweep
    command = shlex.join(["python", "train.py", *overrides])
    solver = HydraConfig.get().runtime.choices.get("solver")
    parts = build_parts(plain(config), solver, typed_targets(overrides))
    return Settings(folder=folder, resolved=shown(config), command=command, **parts)


def check_config(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raises what `build_settings` would, for a config that is only composed of `overrides`, not run."""
    build_parts(plain(config), allowed=typed_targets(overrides))


def compose_parts(overrides: Sequence[str]) -> dict[str, Any]:
    """`options` and every component that a command line would build, without a run.

    Raises ValueError with one sentence for whatever a run would refuse.
    """
    register_resolvers()
    try:
        return build_parts(plain(_compose(overrides)), allowed=typed_targets(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, config_keys())) from error


def config_keys() -> list[str]:
    """All keys of the default config, dotted, to suggest from."""
    return _dotted(_compose([]))


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _dotted(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, config):
        node = config._get_node(key)
        keys += [prefix + key, *(_dotted(node, f"{prefix}{key}.") if isinstance(node, DictConfig) else [])]
    return keys


def build_parts(
    values: dict[str, Any], chosen_solver: str | None = None, allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """`options`, every component that the run needs, and the solvers to compare, by the names in `Settings`.

    Args:
        values: the whole config.
        chosen_solver: the option of the group solver that `values["solver"]` was made of.
        allowed: prefixes of a user's own classes, as typed on the command line.
    """
    option_names = {field.name for field in dataclasses.fields(RunOptions)}
    refuse_unknown_keys("", set(values), {*option_names, *COMPONENTS, TEACHERS})
    for name in COMPONENTS:
        if name not in values:
            raise ValueError(f"the config has no {name}: choose an option, say {name}=...")
    options = _build_dataclass("", RunOptions, {key: value for key, value in values.items() if key in option_names})
    allocation = build_component("allocation", values["allocation"], allowed)
    needed = COMPONENTS if allocation.sensitivity is None else FROM_FILE
    parts = {name: build_component(name, values[name], allowed) for name in needed}
    if "model" in parts:
        parts[TEACHERS] = _build_teachers(values.get(TEACHERS), allowed)
    if "analysis" in parts:
        parts["analysis"] = with_activations(parts["analysis"], parts["bits"])
    if is_automatic(parts.get("solver")):
        parts["bits"] = with_best_score(parts["bits"])
        finder = solver_for(parts["bits"], parts["analysis"].landscape)
        if finder is not None:
            parts["solver"] = build_component("solver", _solver_node(finder, values, None), allowed)
    if is_automatic(parts.get("reconstruction")):
        node = _option_node("reconstruction", reconstruction_for(parts["finetune"], parts["tuning"]))
        parts["reconstruction"] = build_component("reconstruction", node, allowed)
    if "validate" in parts:
        solvers = {name: _solver_node(name, values, chosen_solver) for name in parts["validate"].solvers}
        parts["compared"] = {name: build_component("solver", node, allowed) for name, node in solvers.items()}
        options.torch_device()
    for key, number in _numbers(values):
        if not isfinite(number):
            raise ValueError(f"{key}={number} is not a finite number: give one")
    return {"options": options, **parts}


def _build_teachers(node: Any, allowed: Sequence[str]) -> dict[str, Any]:
    """Name → network, in the order of the command line; none for null."""
    teachers = {} if node is None else node
    if not isinstance(teachers, dict) or "_target_" in teachers:
        raise ValueError(f"{TEACHERS}={node!r} is no mapping of names to networks: {choosing_teacher(f'{TEACHERS}.a')}")
    for name, value in teachers.items():
        if not isinstance(value, dict) or "_target_" not in value:
            place = f"{TEACHERS}.{name}"
            raise ValueError(f"{place}={value!r} is no network: {choosing_teacher(place)}")
    return {name: build_component(f"{TEACHERS}.{name}", value, allowed, "model") for name, value in teachers.items()}


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of every fraction in a config."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _numbers(item, f"{key}[{place}]")
    elif isinstance(value, float):
        yield key, value


def _solver_node(name: str, values: dict[str, Any], chosen: str | None) -> Any:
    """An option of the group solver as its file has it, in the run's memory; the chosen one as the run has it."""
    if name == chosen:
        return values["solver"]
    options = sorted(path.stem for path in (config_folder() / "solver").glob("*.yaml"))
    if name not in options:
        raise ValueError(f"validate.solvers: solver={name} is not an option: {suggest(name, options)}")
    node = _option_node("solver", name)
    limit = {key: values["solver"].get(key) for key in node if key == "memory_limit_gib"}
    return node | limit


def _option_node(group: str, name: str) -> dict[Any, Any]:
    """An option of a group as its file has it."""
    node = OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return node


def build_component(name: str, node: Any, allowed: Sequence[str] = (), slot: str | None = None) -> Any:
    """The object that `_target_` of a group option names, built from the option's other (plain) values.

    Args:
        name: section of the config.
        node: its values.
        allowed: prefixes of a user's own classes.
        slot: the group that the option is of, where that is not the section's name.

    Only a class that fits the slot is built, and only with plain values. Raises ValueError for any other target, an
    unknown or missing key, a value of the wrong type, or one that the class refuses.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        if (config_folder() / name).is_dir():
            raise ValueError(f"{name}={node!r} is not a group option with a _target_: choose one of conf/{name}/")
        raise ValueError(f"{name}={node!r} is no section: give single keys, {name}.KEY=... (see conf/config.yaml)")
    cls = allowed_class(slot or name, str(node["_target_"]), allowed)
    values = {key: value for key, value in node.items() if key != "_target_"}
    _refuse_nested_targets(name, values)
    return _build_dataclass(name, cls, values)


def _refuse_nested_targets(name: str, value: Any) -> None:
    """A component is made of plain values; nothing inside it is built."""
    if isinstance(value, dict):
        if "_target_" in value:
            raise ValueError(f"{name}._target_={value['_target_']} stands inside a component: give plain values there")
        for key, item in value.items():
            _refuse_nested_targets(f"{name}.{key}", item)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_nested_targets(f"{name}[{place}]", item)


def _build_dataclass(name: str, cls: Any, values: dict[str, Any]) -> Any:
    """Checks keys and types against the fields of `cls`, then builds it; tuples stay tuples."""
    prefix = f"{name}." if name else ""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    names = {field.name for field in fields}
    refuse_unknown_keys(prefix, set(values), names)
    for field in fields:
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if values.get(field.name) == "???" or (field.name not in values and not optional):
            raise ValueError(f"{prefix}{field.name} is not set: give {prefix}{field.name}=... on the command line")
    hints = get_type_hints(cls)
    for key, value in values.items():
        if not fits(value, hints[key]):
            raise ValueError(wrong_type(prefix, key, value, hints[key]))
    arguments = {key: as_annotated(value, hints[key]) for key, value in values.items()}
    with in_section(name, names if name else ()):
        try:
            return cls(**arguments)
        except FileNotFoundError:
            raise
        except OSError as error:  # a path that the file system cannot even look up
            given = str(error.filename)[:80]
            raise ValueError(f"{name} names a path that cannot be read: {given}: {error.strerror}") from error


def component_section(name: str, component: Any) -> Any:
    """A context in which complaints of a built component name its section of the config."""
    return in_section(name, [field.name for field in dataclasses.fields(component)])


def leave_no_empty_folder() -> None:
    """Removes the run folder that Hydra makes before anything is checked, if nothing is in it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    for place in (folder, folder.parent):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
