"""Latency tables: measured milliseconds of each block at each bit-width, on a named device."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawq.errors import UserError
from hawq.records import Block, Precision, from_dict
from hawq.records.files import read_json, read_text
from hawq.records.kinds import BitsPair, Milliseconds, Name, repr_of

SCHEMA = "hawq.latency/1"
_COLUMNS = ("device", "block", "bits", "ms")
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by block and bits: "4/8" for weight and activation bits, "4" for any activation bits."""

    device: Name
    milliseconds: dict[Name, dict[BitsPair, Milliseconds]]

    def check_entries(self) -> None:
        """What a file must hold besides entries of the right kind. Raises UserError for a table without any time."""
        if not any(self.milliseconds.values()):
            raise UserError("it holds no time: give one for each block at each of its bits")

    def cost(self, block: Block, precision: Precision) -> float:
        """Milliseconds of one block. Raises UserError when the table has no time for it."""
        row = self.milliseconds.get(block.name, {})
        found = row.get(f"{precision.weight_bits}/{precision.activation_bits}", row.get(f"{precision.weight_bits}"))
        if found is None:
            raise UserError(
                f"the latency table of {self.device} has no time for block {block.name!r} at {precision.weight_bits} "
                f"weight and {precision.activation_bits} activation bits (it has {', '.join(row) or 'none'}): "
                "add it, or give fewer candidates"
            )
        return found


def read_latency(path: Path) -> LatencyTable:
    """A table from JSON ("schema", "device", "milliseconds") or CSV (columns device, block, bits, ms).

    Raises FileNotFoundError, or UserError that names the file and the wrong entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"latency={path} does not exist: give a latency table (.json or .csv)")
    try:
        data = _from_csv(read_text(path)) if path.suffix == ".csv" else _from_json(path)
        return from_dict(data, LatencyTable)
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"latency={path} is not a latency table ({error}): see docs/formats.md") from error


def _from_json(path: Path) -> dict[str, Any]:
    data = read_json(path)
    found = data.pop("schema", None)
    if found != SCHEMA:
        raise ValueError(f"its schema is {repr_of(found)}, this version reads {SCHEMA!r}")
    return data


def _from_csv(text: str) -> dict[str, Any]:
    """The same entries as a JSON file would hold. Raises ValueError naming the line that is wrong."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [cell.strip() for cell in next(lines, [])]
    if sorted(header) != sorted(_COLUMNS):
        raise ValueError(f"its columns are {repr_of(header)}, {', '.join(_COLUMNS)} are needed")
    rows: dict[str, dict[str, float]] = {}
    devices = set()
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(cells)} cells, {len(header)} are needed")
        line = dict(zip(header, cells, strict=True))
        bits, row = line["bits"].strip(), rows.setdefault(line["block"], {})
        if bits in row:
            raise ValueError(
                f"line {lines.line_num} has a second time for block {repr_of(line['block'])} at {bits[:20]} bits"
            )
        if not _NUMBER.fullmatch(line["ms"]):
            raise ValueError(f"line {lines.line_num} has the time {repr_of(line['ms'])}, a number is needed")
        row[bits] = float(line["ms"])
        devices.add(line["device"])
    if len(devices) != 1:
        raise ValueError(f"it holds times of {len(devices)} devices, one is needed")
    return {"device": devices.pop(), "milliseconds": rows}
