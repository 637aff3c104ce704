"""The file of a validation."""

from __future__ import annotations

from pathlib import Path

from hawq.records import Validated, read_record

VALIDATION_SCHEMA = "hawq.validation/3"
_BLOCKS_ALONE = "hawq.validation/2"  # without KL and without whole plans


def read_validation(path: Path) -> Validated:
    """The result in a `validation.json` of this or the former schema. Raises as `read_record` does."""
    return read_record(path, VALIDATION_SCHEMA, Validated, {_BLOCKS_ALONE: dict})
