"""Whether a plain value of a config fits the annotation of the field it is meant for."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    list: "a list",
    dict: "a mapping",
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value (numbers, text, lists, mappings) is one of type `hint`, whole numbers being numbers too."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return isinstance(value, float) or (fits(value, int) and abs(value) < 10**300)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (tuple, list):
        items = inside[:1] if origin is list or inside[-1:] == (...,) else inside
        return isinstance(value, (list, tuple)) and all(fits(item, items[0]) for item in value)
    if origin is dict:
        keys, values = inside
        return isinstance(value, dict) and all(fits(k, keys) and fits(v, values) for k, v in value.items())
    if inside:  # a union
        return any(fits(value, option) for option in inside)
    return isinstance(value, hint)


def as_annotated(value: Any, hint: Any) -> Any:
    """A list as a tuple where the annotation says so."""
    wants_tuple = tuple in (get_origin(hint), *map(get_origin, get_args(hint)))
    return tuple(value) if wants_tuple and isinstance(value, list) else value


def wrong_type(prefix: str, key: str, value: Any, hint: Any) -> str:
    """One sentence for a value that does not fit; `prefix` is the section of the config with a dot, or nothing."""
    options = get_args(hint) if NoneType in get_args(hint) else (hint,)
    names = [_NAMES.get(get_origin(kind) or kind, str(kind)) for kind in options if kind is not NoneType]
    inside = [kind for option in options for kind in get_args(option) if kind in _NAMES]
    of = f", each {_NAMES[inside[-1]]}," if inside and {"a list", "a mapping"} & set(names) else ""
    null = " or null" if len(options) > 1 else ""
    return f"{prefix}{key}={value!r} has the wrong type: {' or '.join(names)}{of}{null} is needed"
