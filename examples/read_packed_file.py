"""Reads a packed file with NumPy alone: `python examples/read_packed_file.py model.safetensors`.

docs/formats.md describes the file. `read` gives what hawq.load gives, bit for bit, and `quantize_input` what a layer
does to its input; operators, strides and ε of batch norm are not in the file.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "F64": np.float64, "I32": np.int32}
_SCHEMAS = ("hawq.packed/2", "hawq.packed/3")


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.float32, float, float]], dict[str, Any]]:
    """({tensor: float32 values}, {layer: (step, low, high) of its input}, header). Raises ValueError if damaged."""
    raw = Path(path).read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")  # safetensors: length, JSON, tensors
    entries = json.loads(raw[8:begin])
    header = json.loads(entries.pop("__metadata__")["hawq"])
    pools = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        pools[name] = np.frombuffer(raw[begin + first : begin + last], _TYPES[entry["dtype"]])
    text = json.dumps({key: value for key, value in header.items() if key != "checksum"}, sort_keys=True)
    digest = hashlib.sha256(text.encode() + b"".join(pools[name].tobytes() for name in sorted(pools)))
    if header["schema"] not in _SCHEMAS or digest.hexdigest() != header["checksum"]:
        raise ValueError(f"{path} is damaged, or of another format: {header['schema']}")

    def take(pool: str, count: int) -> np.ndarray:
        part, pools[pool] = pools[pool][:count], pools[pool][count:]
        return part

    def scales_of(entry: dict[str, Any], count: int) -> np.ndarray:
        return take("wide" if entry.get("wide") else "scales", count)

    tensors, grids = {}, {}
    for entry in header["weights"]:
        bits, shape, count = entry["bits"], entry["shape"], int(np.prod(entry["shape"]))
        planes = np.unpackbits(take("codes", -(-count * bits // 8)), count=count * bits, bitorder="little")
        codes = planes.reshape(count, bits) @ (1 << np.arange(bits))
        per_channel = [-1 if axis == entry.get("axis", 0) else 1 for axis in range(len(shape))]
        scales, lows = scales_of(entry, entry["scales"]), take("lows", entry["lows"])
        codes = codes.reshape(shape).astype(scales.dtype) + lows.astype(scales.dtype).reshape(per_channel)
        weight = codes * scales.reshape(per_channel)
        if entry["large"] is not None:
            places = take("large_places", entry["large"])
            weight.reshape(-1)[places] = take("wide" if entry.get("wide") else "large_values", entry["large"])
        tensors[entry["name"] + ".weight"] = weight
    for entry in [*header["inputs"], *header.get("residuals", [])]:
        low = float(take("lows", 1)[0])
        grids[entry["name"]] = (scales_of(entry, 1)[0], low, low + 2 ** entry["bits"] - 1)
    for entry in header["floats"]:
        tensors[entry["name"]] = take("floats", int(np.prod(entry["shape"]))).reshape(entry["shape"])
    for entry in header.get("tensors", []):  # NumPy has no bfloat16: its bits
        kind = np.dtype({"bfloat16": "uint16"}.get(entry["dtype"], entry["dtype"]))
        data = take("exact", int(np.prod(entry["shape"])) * kind.itemsize)
        tensors[entry["name"]] = np.frombuffer(data.tobytes(), kind).reshape(entry["shape"])
    return tensors, grids, header


def quantize_input(x: np.ndarray, step: np.float32, low: float, high: float, keeps_large: bool = False) -> np.ndarray:
    """float32 x on its grid: codes nearest to x · (1/step), halves to even; half-integer codes where low is one."""
    half = np.float32(low % 1)
    codes = np.rint(x * (np.float32(1) / step) - half) + half
    on_grid = np.clip(codes, np.float32(low), np.float32(high)) * step
    return np.where(np.abs(x) > step * np.float32(high), x, on_grid) if keeps_large else on_grid


if __name__ == "__main__":
    for name, values in read(sys.argv[1])[0].items():
        print(name, values.shape, len(np.unique(values)), "values")
