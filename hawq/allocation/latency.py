"""Latency tables: measured milliseconds of each block at each bit-width, on a named device."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from hawq.errors import UserError
from hawq.records import Block, Precision

SCHEMA = "hawq.latency/1"


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by block and bits: "4/8" for weight and activation bits, "4" for any activation bits."""

    device: str
    milliseconds: dict[str, dict[str, float]]

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

    Raises FileNotFoundError, or UserError for a file that is no table, holds times of two devices, or a negative time.
    """
    if not path.is_file():
        raise FileNotFoundError(f"latency={path} does not exist: give a latency table (.json or .csv)")
    try:
        table = _from_csv(path) if path.suffix == ".csv" else _from_json(path)
        times = [time for row in table.milliseconds.values() for time in row.values()]
        if not times or not all(0 <= time < float("inf") for time in times):
            raise ValueError("every time must be a finite number of milliseconds, and there must be one")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"latency={path} is not a latency table ({error!r}): see docs/formats.md") from error
    return table


def _from_json(path: Path) -> LatencyTable:
    data = json.loads(path.read_text())
    if data["schema"] != SCHEMA:
        raise ValueError(f"its schema is {data['schema']!r}, this version reads {SCHEMA!r}")
    rows = {str(b): {str(bits): float(ms) for bits, ms in row.items()} for b, row in data["milliseconds"].items()}
    return LatencyTable(str(data["device"]), rows)


def _from_csv(path: Path) -> LatencyTable:
    rows: dict[str, dict[str, float]] = {}
    devices = set()
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            devices.add(line["device"])
            rows.setdefault(line["block"], {})[line["bits"].strip()] = float(line["ms"])
    if len(devices) != 1:
        raise ValueError(f"it holds times of {len(devices)} devices {sorted(devices)}, one is needed")
    return LatencyTable(devices.pop(), rows)
