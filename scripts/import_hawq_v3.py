"""HAWQ-V3's published numbers as files of ours: `python scripts/import_hawq_v3.py hawq_v3_resnet18_ilp.json FOLDER`.

Writes FOLDER/sensitivity.json and FOLDER/latency.json. Then, for each published plan:
python train.py stages=[allocation] allocation.sensitivity=FOLDER/sensitivity.json bits=hawq_v3 bits.ends=null
bits.level=0.5 bits.unit=latency_ms bits.latency=FOLDER/latency.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hawq.allocation.latency import SCHEMA
from hawq.experiment.artifacts import write_json
from hawq.files import write_whole
from hawq.records import SENSITIVITY_SCHEMA, Block, BlockSensitivity, Estimate, Sensitivity, dump_record


def import_sensitivity(layers: list[dict[str, Any]]) -> Sensitivity:
    """One row per layer: Tr(H_i) = average trace · n_i, squared errors, MACs; eigenvalues were not published."""
    leaders = {layer["tied_to"] for layer in layers if layer["tied_to"]}
    rows = []
    for layer in layers:
        name, size = layer["name"], layer["num_weights"]
        tie_group = layer["tied_to"] or (name if name in leaders else None)
        rows.append(
            BlockSensitivity(
                block=Block(name, (name,), size, macs=layer["macs"], tie_group=tie_group),
                eigenvalue=None,
                weight_errors={int(bits): error for bits, error in layer["squared_error"].items()},
                trace=Estimate(layer["average_trace"] * size, 0.0, 0, True),
            )
        )
    return Sensitivity(tuple(rows), "published by HAWQ-V3", 0, 0.0)


def main() -> None:
    """Reads the published file and writes both of ours."""
    if len(sys.argv) != 3:
        raise SystemExit("error: type: python scripts/import_hawq_v3.py hawq_v3_resnet18_ilp.json FOLDER")
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        layers = json.loads(source.read_text())["layers"]
        sensitivity = import_sensitivity(layers)
        milliseconds = {layer["name"]: layer["latency_ms"] for layer in layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {source} does not hold HAWQ-V3's numbers ({error!r})") from error
    write_whole(folder / "sensitivity.json", dump_record(SENSITIVITY_SCHEMA, sensitivity))
    write_json(folder / "latency.json", {"schema": SCHEMA, "device": "NVIDIA T4", "milliseconds": milliseconds})
    print(f"{len(layers)} layers: {folder / 'sensitivity.json'}, {folder / 'latency.json'}")


if __name__ == "__main__":
    main()
