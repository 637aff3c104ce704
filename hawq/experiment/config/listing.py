"""`python train.py --info`: every group of the configuration and its options, with one line each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size

import yaml

from hawq.experiment.config.explain import suggest
from hawq.experiment.config.names import config_folder

HYDRAS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What Hydra's own --info takes; it still does."""

_APART = ("sweep",)  # W&B sweeps, which are no group of the configuration
_LEAST_COLUMNS = 60


def asked_groups(arguments: Sequence[str]) -> list[str] | None:
    """The groups behind --info, none for all of them; None where it was not typed or is Hydra's own."""
    for place, argument in enumerate(arguments):
        if argument == "--info" or argument.startswith("--info="):
            given = argument.partition("=")[2] or next(iter(arguments[place + 1 : place + 2]), "")
            if given in HYDRAS:
                return None
            return [given] if given and not given.startswith("-") and "=" not in given else []
    return None


def groups() -> dict[str, list[Path]]:
    """Group → files of its options."""
    folder = config_folder()
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        group = path.relative_to(folder).parts[0]
        if path.parent != folder and group not in _APART:
            found.setdefault(group, []).append(path)
    return found


def options_text(wanted: Sequence[str]) -> str:
    """All groups, or the `wanted` ones with the keys of each option; * marks the default.

    Raises ValueError for a group that does not exist.
    """
    known, folder, lines = groups(), config_folder(), []
    for name in wanted:
        if name not in known:
            raise ValueError(f"--info {name}: {name} is not a group: {suggest(name, sorted(known))}")
    defaults = _defaults(folder / "config.yaml")
    most = max(_LEAST_COLUMNS, get_terminal_size((100, 24)).columns)
    for group, paths in known.items():
        if wanted and group not in wanted:
            continue
        options = {path.relative_to(folder / group).with_suffix("").as_posix(): path for path in paths}
        longest = max(map(len, options))
        lines.append(group)
        for option, path in options.items():
            mark = "*" if defaults.get(group) == option else " "
            lines.append(_shortened(f"  {mark} {option:<{longest}}  {about(path)}", most))
            if wanted:
                lines += [_shortened(f"      {line}", most) for line in _keys(path)]
    tail = "choose with group=option; --info GROUP lists the keys of a group; --cfg job prints what a command comes to"
    return "\n".join([*lines, "", *(["* is the default; " + tail] if not wanted else [])]).rstrip()


def about(path: Path) -> str:
    """The first line of comment of an option."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
    return ""


def _keys(path: Path) -> list[str]:
    """The lines of an option that set a key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "_target_", "defaults", "  -"))]


def _defaults(path: Path) -> dict[str, str]:
    """Group → the option that the table of contents names."""
    found = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, dict):
            for group, option in entry.items():
                found[re.sub(r"^override ", "", str(group)).lstrip("/")] = str(option)
    return found


def _shortened(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"
