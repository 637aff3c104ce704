"""What a config may name: our own components, a user's own where the command line says so, and Hydra's known parts.

A config is data. It chooses among registered components and gives them plain values; it cannot import or call anything
else, not through a `_target_`, and not through Hydra's callbacks, launchers or logging either.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from hawq.components import component_name

OURS = "hawq."

RENAMED_TARGETS = {
    "hawq.allocation.Mixed": "hawq.allocation.IntegerProgram",
    "hawq.models.ModelSource": "hawq.models.ModelSpec",
    "hawq.tracking.NoTracking": "hawq.experiment.tracking.NoTracking",
    "hawq.tracking.WandbTracking": "hawq.experiment.tracking.WandbTracking",
}
"""Targets of earlier versions; a file with one of them still works."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "model": ("build",),
    "dataset": ("name", "normalization", "open", "prepare"),
    "float_network": ("num_steps",),
    "analysis": ("num_samples", "batch_size"),
    "solver": ("name", "reads", "memory_limit_gib", "start", "update", "estimates"),
    "validate": ("num_samples", "batch_size"),
    "bits": ("check", "allocate"),
    "search": ("images", "num_images", "judge"),
    "allocation": ("sensitivity",),
    "quantizer": ("name", "weight", "activation"),
    "reconstruction": (),
    "tuning": ("epochs", "num_samples", "batch_size", "lr"),
    "finetune": ("num_steps", "block_order"),
    "export": (),
    "deploy": (),
    "tracking": ("open",),
}
"""What a user's own class must have to stand in a section."""

_CALLBACKS = {"hawq.experiment.sweep.SweepTable", "hydra.experimental.callbacks.LogJobReturnCallback"}
_LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
}
_SWEEPERS = {
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
}
_LOGGING = {
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "colorlog.ColoredFormatter",
    "ext://sys.stdout",
    "ext://sys.stderr",
}


def allowed_class(slot: str, target: str, allowed: Sequence[str] = ()) -> type:
    """The class behind a target, checked against what the section needs before anything of it runs.

    Args:
        slot: section of the config, say "solver".
        target: dotted path of a class.
        allowed: prefixes of a user's own modules, as typed on the command line.

    Raises:
        ValueError: a path that is neither ours nor allowed (it is not even imported), that leads to no class, or to
            one that is not made for this section.
    """
    target = RENAMED_TARGETS.get(target, target)
    prefixes = (OURS, *allowed)
    if not target.startswith(prefixes):
        raise ValueError(f"{slot}._target_={target} is not allowed: {_remedy(prefixes)}")
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"{slot}._target_={target} does not exist: {_first_line(error)}") from error
    own = isinstance(found, type) and not f"{found.__module__}.".startswith(OURS)
    if not isinstance(found, type) or (own and not f"{found.__module__}.".startswith(tuple(allowed))):
        raise ValueError(f"{slot}._target_={target} is not an allowed class: {_remedy(prefixes)}")
    if own:
        _refuse_unfit(slot, target, found)
    elif (component_name(found) or "").split("/")[0] != slot:
        raise ValueError(f"{slot}._target_={target} is no component of {slot}: choose an option of conf/{slot}/")
    return found


def _refuse_unfit(slot: str, target: str, cls: type) -> None:
    """Raises ValueError for a user's own class that cannot stand in a section."""
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{slot}._target_={target} is no dataclass: declare its settings as fields of one")
    fields = {field.name for field in dataclasses.fields(cls)}
    missing = [name for name in _NEEDED[slot] if name not in fields and not hasattr(cls, name)]
    if missing:
        needed = ", ".join(_NEEDED[slot])
        raise ValueError(f"{slot}._target_={target} lacks {', '.join(missing)}: a class with {needed} is needed there")


def _remedy(prefixes: Sequence[str]) -> str:
    return (
        f"give a component below {', '.join(prefixes)}, or type allowed_targets=[{','.join(prefixes)},your_module.] on "
        "the command line"
    )


def typed_targets(overrides: Sequence[str]) -> tuple[str, ...]:
    """The prefixes that `allowed_targets=[...]` on a command line adds to ours; a file cannot add any."""
    given: list[Any] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "allowed_targets" and not override.is_sweep_override():
            value = override.value()
            given = value if isinstance(value, list) else [value]
    prefixes = [f"{str(prefix).rstrip('.')}." for prefix in given if str(prefix).strip(". ")]
    return tuple(prefix for prefix in prefixes if prefix != OURS)


def check_hydra(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raises ValueError where Hydra's own part of a config names anything but its known parts.

    Hydra builds callbacks, launcher, sweeper and logging before a job sees its config, so this comes before Hydra.

    Args:
        config: a composed config with its node `hydra`, not resolved.
        overrides: what was typed; environment variables are set only where it says so.
    """
    node = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(node, dict)
    callbacks = node.get("callbacks") or {}
    for name, callback in callbacks.items() if isinstance(callbacks, dict) else [("", callbacks)]:
        _refuse_unknown(f"hydra.callbacks.{name}".rstrip("."), callback, _CALLBACKS)
    _refuse_unknown("hydra.launcher", node.get("launcher"), _LAUNCHERS)
    _refuse_unknown("hydra.sweeper", node.get("sweeper"), _SWEEPERS)
    for key in ("job_logging", "hydra_logging"):
        for place, value in _named_objects(f"hydra.{key}", node.get(key)):
            if value not in _LOGGING:
                raise ValueError(f"{place}={value} is not allowed: give one of {', '.join(sorted(_LOGGING))}")
    typed = any(override.lstrip("+").startswith("hydra.job.env_set") for override in overrides)
    if (node.get("job") or {}).get("env_set") and not typed:
        raise ValueError("hydra.job.env_set sets environment variables from a file: type it on the command line")


def _refuse_unknown(place: str, node: Any, known: set[str]) -> None:
    target = node.get("_target_") if isinstance(node, dict) else None
    if node is not None and target not in known:
        raise ValueError(f"{place}._target_={target} is not allowed: give one of {', '.join(sorted(known))}")


def _named_objects(place: str, node: Any) -> Iterator[tuple[str, str]]:
    """(key, dotted path) of all that a logging config would import: classes, factories, `ext://`, interpolations."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("class", "()", "_target_"):
                yield f"{place}.{key}", str(value)
            else:
                yield from _named_objects(f"{place}.{key}", value)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _named_objects(f"{place}[{position}]", value)
    elif isinstance(node, str) and ("://" in node or ("${" in node and not place.endswith(".filename"))):
        yield place, node


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
