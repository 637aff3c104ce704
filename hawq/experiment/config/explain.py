"""A wrong config in one sentence: what was given, what is allowed, what to type instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import MissingConfigException

from hawq.errors import UserError
from hawq.experiment.config.names import config_folder

RENAMED = {
    "training": "float_network",
    "validation": "validate",
    "validate.widths": "validate.bit_widths",
    "bits.widths": "bits.bit_widths",
    "bits.weighting": "bits.score",
}
"""Sections and keys that had another name; on a command line the old one still works."""


GONE = {"export.onnx": "type deploy=onnx and name deploy in stages"}
"""Keys that no longer exist → what to type instead."""


def explain(error: Exception, known_keys: Sequence[str] = ()) -> str:
    """An error of Hydra or OmegaConf about a command line or a file."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.partition("/")
        folder = config_folder() / group
        nested = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
        options = sorted({*nested, *(error.options or [])})
        return f"{group or 'config'}={option} is not an option: {suggest(option, options)}"
    for chained in (error, error.__cause__):
        key = getattr(chained, "full_key", None)
        if key and today(key) != key:
            return f"{key} is called {today(key)} now: type that"
        if key in GONE:
            return f"{key} is gone: {GONE[key]}"
        if key and key.startswith("teachers."):
            return _explain_teacher(key, known_keys)
        if key and key not in known_keys:
            if owners := options_with(key):
                return f"{key} is not a key of the chosen option: give {' or '.join(owners)} too"
            return f"{key} is not a key of the config: {suggest(key, known_keys)}"
    return " ".join(str(error).split())


def choosing_teacher(place: str) -> str:
    """How to choose a network for a section, teachers.a say."""
    return f"type +model@{place}=resnet20 {place}.checkpoint=path"


def _explain_teacher(key: str, known_keys: Sequence[str]) -> str:
    """What is wrong with teachers.NAME, which nobody chose, or teachers.NAME.KEY, which no network has."""
    place = ".".join(key.split(".")[:2])
    if key == place:
        return f"{place} is not chosen yet: {choosing_teacher(place)}"
    allowed = [place + known.removeprefix("model") for known in known_keys if known.startswith("model.")]
    return f"{key} is not a key of the config: {suggest(key, allowed)}"


def options_with(key: str) -> list[str]:
    """The options of a group, as they are typed, that have a dotted key which the chosen one lacks."""
    group, _, name = key.partition(".")
    pattern = re.compile(rf"^{re.escape(name.partition('.')[0])}:", re.MULTILINE)
    files = sorted((config_folder() / group).glob("*.yaml")) if name and group.isidentifier() else []
    return [f"{group}={path.stem}" for path in files if pattern.search(path.read_text())]


def suggest(given: str, allowed: Sequence[str]) -> str:
    """The allowed name that comes closest, and all of them where they are few."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    listed = f"allowed are {', '.join(allowed)}" if len(allowed) <= 25 else "see conf/"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def refuse_unknown_keys(prefix: str, given: set[str], known: set[str]) -> None:
    """Raises ValueError for a key that does not exist; `prefix` is its section with a dot, or nothing."""
    for key in sorted(given - known):
        if prefix + key in GONE:
            raise ValueError(f"{prefix}{key} is gone: {GONE[prefix + key]}")
        allowed = sorted(prefix + name for name in known)
        raise ValueError(f"{prefix}{key} is not a key of the config: {suggest(prefix + key, allowed)}")


@contextmanager
def in_section(section: str, fields: Iterable[str]) -> Iterator[None]:
    """Puts the section in front of the fields that a complaint names: `tolerance=2 …` → `solver.tolerance=2 …`.

    Library classes do not know where in a config they stand. Raises an error of the same kind.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = with_section(str(error), section, fields)
        if text == str(error):
            raise
        kinds = (UserError, FileNotFoundError, ValueError)
        raise next(kind for kind in kinds if isinstance(error, kind))(text) from error


def with_section(text: str, section: str, fields: Iterable[str]) -> str:
    """`text` with the section before every field that it begins with, or that it says how to give (`field=...`)."""
    names = "|".join(re.escape(field) for field in sorted(fields, key=len, reverse=True)) or "(?!)"
    return re.sub(rf"^({names})(?=[=.\[\s:])|(?<![\w.\-/])({names})(?==)", rf"{section}.\g<0>", text)


def modernise(arguments: Sequence[str]) -> list[str]:
    """A command line with today's names of sections and keys in place of earlier ones (`RENAMED`)."""
    return [_modern(argument) for argument in arguments]


def _modern(argument: str) -> str:
    key = re.match(r"[+~]{0,2}([A-Za-z_][\w.]*)", argument)
    return argument if key is None else argument[: key.start(1)] + today(key.group(1)) + argument[key.end(1) :]


def today(key: str) -> str:
    """A dotted key under its name of today."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            key = new + key[len(old) :]
    return key
