"""Where things lie, and what runs and sweeps are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from hawq.experiment.artifacts import fingerprint

_PACKAGE = Path(__file__).resolve().parents[2]
_CHECKOUT = _PACKAGE.parent

NOT_PART_OF_A_RESULT = ("hydra", "stages", "device", "threads", "workers", "tracking", "outputs", "allowed_targets")


_HOW = ("hydra/launcher=", "hydra.launcher.", "hydra/hydra_logging=", "hydra.verbose=")  # words of a sweep's command


def is_checkout() -> bool:
    """Whether this code runs from a checkout of the repository, not from an installed package."""
    return (_CHECKOUT / "conf" / "config.yaml").is_file()


def config_folder() -> Path:
    """The menu: conf/ of the repository, or its copy in an installed package."""
    return _CHECKOUT / "conf" if is_checkout() else _PACKAGE / "conf"


def repository() -> Path:
    """The checkout that outputs go to; the current folder where the package is installed without one."""
    return _CHECKOUT if is_checkout() else Path.cwd()


REPOSITORY = repository()


def register_resolvers() -> None:
    """`${repository:}`, `${run_name:}` and `${command_name:}`, for the folders in `config.yaml`."""
    OmegaConf.register_new_resolver("repository", lambda: str(repository()), replace=True)
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("command_name", lambda: command_name(sys.argv[1:]), replace=True)


def section_of(override: str) -> str:
    """The section or group of the config that an override of the command line is about, with or without a dot."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def plain(config: DictConfig) -> dict[str, Any]:
    """The config without Hydra's own part, as resolved plain values."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def shown(config: DictConfig) -> dict[str, Any]:
    """`plain` with what `${oc.env:...}` gives left as it was written: environment variables may hold secrets."""
    OmegaConf.register_new_resolver("oc.env", _as_written, replace=True)
    try:
        return plain(config)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _as_written(*arguments: Any) -> str:
    return f"${{oc.env:{','.join(map(str, arguments))}}}"


def run_name(config: DictConfig) -> str:
    """Folder name of a run: what was chosen, and a hash of the config, so that the same command finds it again."""
    choices = config.hydra.runtime.choices
    facts = {key: value for key, value in plain(config).items() if key not in NOT_PART_OF_A_RESULT}
    text = json.dumps(facts, sort_keys=True)  # takes NaN too, which is refused later, with a better message
    section = config.allocation
    given = section.sensitivity if isinstance(section, DictConfig) else None  # else it is refused later, in words
    network = [choices.model, choices.dataset] if given is None else [Path(str(given)).stem]
    parts = [*network, choices.bits, f"s{config.seed}", fingerprint(text)[:8]]
    return "-".join(str(part).replace("/", "_") for part in parts)


def job_facts(config: DictConfig) -> dict[str, Any]:
    """What decides whether a job of a sweep is finished: everything that its results depend on, and its stages."""
    apart = set(NOT_PART_OF_A_RESULT) - {"stages"}
    return {key: value for key, value in plain(config).items() if key not in apart}


def command_name(arguments: Sequence[str]) -> str:
    """Folder name of a sweep: a hash of its command line, but for what decides how its jobs are started and logged."""
    return "sweep-" + fingerprint(sorted(word for word in arguments if not word.startswith(_HOW)))[:8]
