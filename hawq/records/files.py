"""Records in JSON files that name their schema; also those written by hand, which may hold anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hawq.errors import UserError
from hawq.records.conversion import Record, from_dict, to_dict
from hawq.records.kinds import repr_of
from hawq.records.sensitivity import Sensitivity

SENSITIVITY_SCHEMA = "hawq.sensitivity/3"
_ROWS_ALONE = "hawq.sensitivity/2"  # without scores, which follow from the rows
PLAN_SCHEMA = "hawq.plan/1"
MOST_BYTES = 32 * 2**20  # of a file that is read as a whole

Upgrades = Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]


def dump_record(schema: str, record: Any) -> bytes:
    """A record as indented JSON that names its schema."""
    return (json.dumps({"schema": schema, **to_dict(record)}, indent=2, allow_nan=False) + "\n").encode()


def read_record(path: Path, schema: str, kind: type[Record], older: Upgrades | None = None) -> Record:
    """The record in a file that `dump_record` wrote, or that was written by hand.

    Args:
        path: of the file.
        schema: that the file must name.
        kind: of record.
        older: schema → function that turns the entries of a file of that schema into those of `schema`.

    Raises:
        FileNotFoundError: no such file.
        UserError: in one sentence, the file, the entry that is wrong, and what is allowed there.
    """
    try:
        data = read_json(path)
        found = data.pop("schema", None)
        if found != schema:
            if not isinstance(found, str) or found not in (older or {}):
                raise ValueError(f"its schema is {repr_of(found)}, this version reads {schema!r}")
            data = (older or {})[found](data)
        return from_dict(data, kind)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def read_sensitivity(path: Path) -> Sensitivity:
    """The analysis in a `sensitivity.json` of this or the former schema. Raises as `read_record` does."""
    return read_record(path, SENSITIVITY_SCHEMA, Sensitivity, {_ROWS_ALONE: dict})


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of at most 32 MiB.

    Raises FileNotFoundError, or ValueError for a larger file, one that is no JSON mapping, keys that occur twice in one
    mapping, and NaN or infinity.
    """
    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its lists and mappings are nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("it holds no JSON mapping")
    return data


def read_text(path: Path) -> str:
    """The text of a file of at most 32 MiB, in UTF-8.

    Raises FileNotFoundError, or ValueError for a larger file or another encoding.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the path of a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
    return content.decode("utf-8-sig")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice in one mapping")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is not a finite number")
