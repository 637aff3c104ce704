"""Reading a packed file back into a network."""

from __future__ import annotations

import copy
import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.export.bitpack import unpack
from hawq.export.schema import PACKED_SCHEMA, FrozenQuantizer, checksum
from hawq.quantization import Quantization, attach_input_quantizer, check_plan_fits
from hawq.quantization.residuals import attach_residual_quantizers
from hawq.records import BitPlan, Block, from_dict
from hawq.weights import load_strictly


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of `model` (the same architecture, float) with the weights and input quantisers of a packed file.

    Weights are the dequantised codes, bit for bit what the saved network computed with; the copy is in eval mode.
    Raises FileNotFoundError, or ValueError for a file that is not a packed network or belongs to another model.
    """
    path = Path(path)
    header, tensors = _read(path)
    blocks = tuple(from_dict(block, Block) for block in header["blocks"])
    plan = from_dict(header["plan"], BitPlan)
    check_plan_fits(blocks, plan)
    pool = _Reader(tensors)
    weights = {entry["name"]: pool.next_weight(entry) for entry in header["weights"]}
    grids = {entry["name"]: pool.next_grid(entry) for entry in header["inputs"]}
    residuals = {entry["name"]: pool.next_grid(entry) for entry in header.get("residuals", [])}
    state = {f"{name}.weight": weight for name, (weight, _) in weights.items()}
    state |= {entry["name"]: pool.next_float(entry["shape"]) for entry in header["floats"]}
    copied = copy.deepcopy(model)
    load_strictly(copied, state, str(path))
    modules = dict(copied.named_modules())
    device = next(copied.parameters()).device
    for name, (_, quantizer) in weights.items():  # on its own grid a weight stays what it is, and can be saved again
        parametrize.register_parametrization(modules[name], "weight", quantizer.to(device))
    for name, quantizer in grids.items():
        attach_input_quantizer(modules[name], quantizer.to(device))
    copied.quantization = Quantization(blocks, plan)  # type: ignore[assignment]
    if residuals:
        places = {step: entry["name"] for entry in header["residuals"] for step in entry["after"]}
        copied = attach_residual_quantizers(copied, places, {name: one.to(device) for name, one in residuals.items()})
    return copied.eval()


def read_about(path: str | Path) -> dict[str, Any]:
    """The facts that `save` stored with the network. Raises as `load` does."""
    about: dict[str, Any] = _read(Path(path))[0]["about"]
    return about


class _Reader:
    """Takes the tensors of a file apart again, in the order they were added."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._position = dict.fromkeys(tensors, 0)

    def _take(self, pool: str, count: int) -> Tensor:
        begin = self._position[pool]
        self._position[pool] = begin + count
        return self._tensors[pool][begin : begin + count]

    def next_weight(self, entry: dict[str, Any]) -> tuple[Tensor, FrozenQuantizer]:
        shape, bits = entry["shape"], entry["bits"]
        count = prod(shape)
        packed = self._take("codes", -(-count * bits // 8))
        codes = torch.from_numpy(unpack(packed.numpy(), bits, count)).float()
        scale, low = self._take("scales", entry["scales"]), self._take("lows", entry["lows"]).float()
        channels = (-1, *[1] * (len(shape) - 1))
        scale, low = scale.reshape(channels), low.reshape(channels)
        weight = (codes.reshape(shape) + low) * scale
        large = entry["large"]
        if large is not None:
            weight.view(-1)[self._take("large_places", large).long()] = self._take("large_values", large)
        return weight, FrozenQuantizer(bits, scale, low, keeps_large=large is not None)

    def next_grid(self, entry: dict[str, Any]) -> FrozenQuantizer:
        scale, low = self._take("scales", 1), self._take("lows", 1).float()
        return FrozenQuantizer(entry["bits"], scale, low, keeps_large=entry["keeps_large"])

    def next_float(self, shape: list[int]) -> Tensor:
        return self._take("floats", prod(shape)).reshape(shape)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a file that hawq.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["hawq"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a packed network, or is damaged ({error!r})") from error
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != PACKED_SCHEMA:
        raise ValueError(f"{path} has format {schema}, this version reads {PACKED_SCHEMA}")
    if header.get("checksum") != checksum(header, tensors):
        raise ValueError(f"{path} is damaged: its checksum is not the stored one")
    return header, tensors
