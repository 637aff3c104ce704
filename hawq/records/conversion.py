"""Records to JSON-ready values and back; what comes from a file is checked entry by entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import cattrs
from cattrs.gen import make_dict_structure_fn, override

from hawq.records.kinds import SpelledBits, WrongEntry, strict_bool, strict_float, strict_int, strict_text

Record = TypeVar("Record")
_SHOWN = 3  # wrong entries that are named; the others are counted
_LETTERS = 300  # of the message about one entry


def to_dict(record: Any) -> dict[str, Any]:
    """A record as JSON-ready dictionaries and lists."""
    return _jsonable(_converter().unstructure(record))


def from_dict(data: Any, kind: type[Record]) -> Record:
    """The record of type `kind` that `to_dict` wrote.

    Raises ValueError that names wrong entries by their path, with what is allowed there.
    """
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        told = cattrs.transform_error(error, path=kind.__name__, format_exception=_told)
        problems = [_shortened("".join(one.rpartition(" @ ")[::-2])) for one in told]  # the path, then what is wrong
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"not a {kind.__name__}: {'; '.join(problems[:_SHOWN])}{more}") from error


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, hook in ((int, strict_int), (float, strict_float), (bool, strict_bool), (str, strict_text)):
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_factory(lambda kind: get_origin(kind) is Annotated, _annotated)
    converter.register_structure_hook_factory(lambda kind: NoneType in get_args(kind), _optional)
    converter.register_structure_hook_factory(lambda kind: get_origin(kind) is tuple, _tuple)
    converter.register_structure_hook_factory(dataclasses.is_dataclass, _dataclass)
    return converter


def _annotated(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Reads a value of the type that is annotated, then makes the checks of its annotations."""
    inner, *notes = get_args(kind)

    def read(value: Any, _: Any) -> Any:
        for note in notes:
            if isinstance(note, SpelledBits):
                return note.read(value)
        found = converter.structure(value, inner)
        for note in notes:
            note.check(found)
        return found

    return read


def _optional(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Reads null, or a value of the one other type."""
    (inner,) = (option for option in get_args(kind) if option is not NoneType)
    hook = converter.get_structure_hook(inner)
    return lambda value, _: None if value is None else hook(value, inner)


def _tuple(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Reads a list as a tuple; text and mappings are not taken for one."""
    inside = get_args(kind)
    whole = inside[-1:] == (...,)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise WrongEntry(value, "a list")
        if whole:
            return tuple(converter.structure(list(value), list[inside[0]]))  # type: ignore[valid-type]
        if len(value) != len(inside):
            raise WrongEntry(value, f"a list of {len(inside)}")
        return tuple(converter.structure(item, one) for item, one in zip(value, inside, strict=True))

    return read


def _dataclass(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Reads a mapping as a record, which may have a check of its own for entries that concern each other."""
    hints = get_type_hints(kind, include_extras=True)  # cattrs itself would drop the annotations
    hooks = {name: override(struct_hook=converter.get_structure_hook(hint)) for name, hint in hints.items()}
    build = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, **hooks)  # type: ignore[arg-type]
    check = getattr(kind, "check_entries", lambda record: None)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise WrongEntry(value, "a mapping")
        record = build(value, kind)
        check(record)
        return record

    return read


def _told(error: BaseException, kind: Any) -> str:
    """What is wrong with one entry."""
    if isinstance(error, KeyError):
        return " is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f" has unknown entries {', '.join(map(repr, sorted(map(str, error.extra_fields))))}"
    if isinstance(error, AttributeError):
        return " is not allowed (give a mapping)"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, WrongEntry) else f": {text}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS // 2]} … {text[-_LETTERS // 2 :]}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
