"""Reading a packed file back into a network."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.attention import open_attention
from hawq.export.bitpack import unpack
from hawq.export.consistency import check_exact, check_grid, check_header, check_large, check_tensors, check_weights
from hawq.export.frozen import FrozenQuantizer
from hawq.export.schema import (
    EXACT_SCHEMA,
    EXACT_TYPES,
    PACKED_SCHEMA,
    POOLS,
    Header,
    InputEntry,
    ResidualEntry,
    TensorEntry,
    WeightEntry,
    checksum,
    parse_header,
)
from hawq.layers import weight_name, weight_of
from hawq.quantization import Quantization, attach_input_quantizer, refuse_quantized
from hawq.quantization.residuals import attach_residual_quantizers
from hawq.weights import check_names, load_strictly, whole_number_buffers

_LOG = logging.getLogger(__name__)
_SAFETENSORS_TYPES = {
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_LONGEST_HEADER = 2**25  # bytes; ten thousand layers take a tenth of it


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of `model` (the same architecture, float) with the weights and input quantisers of a packed file.

    Weights are the dequantised codes, bit for bit what the saved network computed with; the copy is in eval mode.

    Args:
        path: of a file that `save` wrote, also one of an earlier version.
        model: left unchanged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no packed network, is damaged, contradicts itself, or belongs to another model.
    """
    path = Path(path)
    refuse_quantized(model)
    packed = _read(path)
    header = packed.header
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())
    try:
        check_weights(header, copied)
    except ValueError as error:
        _check_names(header, copied, path)
        raise ValueError(f"{path} is for another network: {error}") from error
    _untie(copied, header)
    _check_names(header, copied, path)
    weights, inputs, residuals, state = _decode(packed, path)
    state |= {_weight_key(name, copied): weight for name, (weight, _) in weights.items()}
    load_strictly(copied, state, str(path), whole_numbers=_keeps_whole_numbers(header))
    open_attention(copied)
    for name, (_, quantizer) in weights.items():  # on its own grid a weight stays what it is, and can be saved again
        _place(quantizer, modules[name])
        parametrize.register_parametrization(modules[name], weight_name(modules[name]), quantizer)
    for name, quantizer in inputs.items():
        attach_input_quantizer(modules[name], _place(quantizer, modules[name]))
    copied.quantization = Quantization(header.blocks, header.plan)  # type: ignore[assignment]
    if residuals:
        places = {step: entry.name for entry in header.residuals for step in entry.after}
        device = next(copied.parameters()).device
        copied = attach_residual_quantizers(copied, places, {name: one.to(device) for name, one in residuals.items()})
    return copied.eval()


def read_about(path: str | Path) -> dict[str, Any]:
    """The facts that `save` stored with the network. Raises as `load` does for a file that is no packed network."""
    return _read(Path(path)).header.about


@dataclass(frozen=True)
class _Packed:
    """A file that is whole and agrees with itself, and its tensors as they stand in it."""

    header: Header
    tensors: dict[str, Tensor]


def _read(path: Path) -> _Packed:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a file that hawq.save wrote")
    try:
        if path.stat().st_size > 8 and _header_bytes(path) > _LONGEST_HEADER:
            raise ValueError(f"its header is longer than {_LONGEST_HEADER} bytes")
        with safe_open(path, framework="pt") as file:
            raw = json.loads((file.metadata() or {})["hawq"])
            shapes = {name: _pool_shape(name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (no dict)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a packed network, or is damaged ({error!r})") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema not in (PACKED_SCHEMA, EXACT_SCHEMA):
        known = f"{PACKED_SCHEMA} and {EXACT_SCHEMA}"
        raise ValueError(f"{path} has format {str(schema)[:40]}, this version reads {known}")
    if raw.get("checksum") != checksum(raw, tensors):
        raise ValueError(f"{path} is damaged: its checksum is not the stored one")
    try:
        header = parse_header(raw)
        check_header(header)
        check_tensors(header, shapes)
    except ValueError as error:
        raise ValueError(f"{path} is no packed network of this project: {error}") from error
    return _Packed(header, tensors)


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def _pool_shape(name: str, tensor: Any) -> int:
    """Elements of a tensor that was not read yet. Raises ValueError where the format has no such one."""
    shape = tensor.get_shape()
    if name not in POOLS or tensor.get_dtype() != _SAFETENSORS_TYPES[POOLS[name]] or len(shape) != 1:
        raise ValueError(f"its tensor {name[:40]!r} is none that the format has")
    return int(shape[0])


def _decode(
    packed: _Packed, path: Path
) -> tuple[
    dict[str, tuple[Tensor, FrozenQuantizer]], dict[str, FrozenQuantizer], dict[str, FrozenQuantizer], dict[str, Tensor]
]:
    """Weights with their quantisers, quantisers of inputs and of steps between layers, all other tensors; by name."""
    header, cursor = packed.header, _Cursor(packed.tensors)
    try:
        weights = {entry.name: cursor.next_weight(entry) for entry in header.weights}
        inputs = {entry.name: cursor.next_grid(entry) for entry in header.inputs}
        residuals = {entry.name: cursor.next_grid(entry) for entry in header.residuals}
        state = {entry.name: cursor.next_float(entry) for entry in header.floats}
        state |= {entry.name: cursor.next_exact(entry) for entry in header.tensors}
    except ValueError as error:
        raise ValueError(f"{path} is no packed network of this project: {error}") from error
    return weights, inputs, residuals, state


class _Cursor:
    """Takes the tensors of a file apart again, in the order they were added."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._position = dict.fromkeys(POOLS, 0)

    def _take(self, pool: str, count: int) -> Tensor:
        begin = self._position[pool]
        self._position[pool] = begin + count
        return self._tensors[pool][begin : begin + count] if count else torch.zeros(0, dtype=POOLS[pool])

    def next_weight(self, entry: WeightEntry) -> tuple[Tensor, FrozenQuantizer]:
        """The weight of an entry, (code + low) · scale, and the quantiser that leaves it as it is."""
        packed = self._take("codes", -(-entry.count * entry.bits // 8))
        large = self._next_large(entry) if entry.large is not None else None
        scale, low = self._next_grid(f"weight {entry.name!r}", entry.bits, entry.scales, entry.lows, entry.wide)
        codes = torch.from_numpy(unpack(packed.numpy(), entry.bits, entry.count)).to(scale.dtype)
        channels = [1] * len(entry.shape)
        channels[entry.axis] = -1
        scale, low = scale.reshape(channels), low.reshape(channels)
        weight = (codes.reshape(entry.shape) + low) * scale
        if large is not None:
            weight.view(-1)[large[0].long()] = large[1]
        return weight, FrozenQuantizer(entry.bits, scale, low, keeps_large=large is not None)

    def _next_large(self, entry: WeightEntry) -> tuple[Tensor, Tensor]:
        places = self._take("large_places", entry.large or 0)
        values = self._take("wide" if entry.wide else "large_values", entry.large or 0)
        check_large(f"weight {entry.name!r}", places, values, entry.count)
        return places, values

    def next_grid(self, entry: InputEntry | ResidualEntry) -> FrozenQuantizer:
        """The quantiser of an entry."""
        scale, low = self._next_grid(f"the input of {entry.name!r}", entry.bits, 1, 1, entry.wide)
        return FrozenQuantizer(entry.bits, scale, low, keeps_large=entry.keeps_large)

    def _next_grid(self, what: str, bits: int, scales: int, lows: int, wide: bool) -> tuple[Tensor, Tensor]:
        scale = self._take("wide" if wide else "scales", scales)
        low = self._take("lows", lows).to(scale.dtype)
        check_grid(what, bits, scale, low)
        return scale, low

    def next_float(self, entry: TensorEntry) -> Tensor:
        """A float32 tensor."""
        return self._take("floats", prod(entry.shape)).reshape(entry.shape)

    def next_exact(self, entry: TensorEntry) -> Tensor:
        """A tensor of another type, from its bytes."""
        kind = EXACT_TYPES[entry.dtype]
        real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(kind, kind)
        flat = self._take("exact", entry.num_bytes).clone().view(real)  # a copy is aligned
        tensor = (torch.view_as_complex(flat.reshape(-1, 2)) if real != kind else flat).reshape(entry.shape)
        check_exact(entry.name, tensor)
        return tensor


def _check_names(header: Header, model: nn.Module, path: Path) -> None:
    """Raises ValueError where names or shapes differ, before any tensor is made; nothing is loaded."""
    shapes = {_weight_key(e.name, model): torch.empty(e.shape, device="meta") for e in header.weights}
    shapes |= {e.name: torch.empty(e.shape, device="meta") for e in header.floats}
    shapes |= {e.name: torch.empty(e.shape, dtype=EXACT_TYPES[e.dtype], device="meta") for e in header.tensors}
    check_names(model, shapes, str(path), whole_numbers=_keeps_whole_numbers(header))
    if not _keeps_whole_numbers(header) and (absent := sorted(set(whole_number_buffers(model)) - shapes.keys())):
        _LOG.warning("%s does not hold %s: these keep the values of the given model", path, ", ".join(absent))


def _keeps_whole_numbers(header: Header) -> bool:
    """Files of the older schema never held integer and boolean tensors."""
    return header.schema == EXACT_SCHEMA


def _weight_key(name: str, model: nn.Module) -> str:
    """The name of a layer's weight in the state of `model`."""
    layer = dict(model.named_modules()).get(name)
    return f"{name}.{'weight' if layer is None else weight_name(layer)}"


def _untie(model: nn.Module, header: Header) -> None:
    """Gives quantised layers weights of their own where the file has the same tensor as float too (an embedding)."""
    floats = {entry.name for entry in header.floats} | {entry.name for entry in header.tensors}
    state = model.state_dict(keep_vars=True)
    read_as_float = {id(state[name]) for name in floats if name in state}
    modules = dict(model.named_modules())
    for entry in header.weights:
        layer = modules[entry.name]
        if id(weight_of(layer)) in read_as_float:
            setattr(layer, weight_name(layer), nn.Parameter(weight_of(layer).detach().clone()))


def _place(quantizer: FrozenQuantizer, layer: nn.Module) -> FrozenQuantizer:
    """The quantiser in the type and on the device of the layer's weight."""
    return quantizer.to(weight_of(layer).device, weight_of(layer).dtype)
