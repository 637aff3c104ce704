"""Records to JSON-ready values and back."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeVar

import cattrs

Record = TypeVar("Record")


def to_dict(record: Any) -> dict[str, Any]:
    """A record as JSON-ready dictionaries and lists."""
    return _jsonable(_converter().unstructure(record))


def from_dict(data: Any, kind: type[Record]) -> Record:
    """The record of type `kind` that `to_dict` wrote. Raises ValueError naming every wrong field."""
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, path=kind.__name__))
        raise ValueError(f"not a {kind.__name__}: {problems}") from error


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(float, _finite_float)
    return converter


def _finite_float(value: Any, _: type) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
