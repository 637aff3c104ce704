"""Writing a packed file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from hawq.errors import UserError
from hawq.export.bitpack import pack
from hawq.export.schema import (
    EXACT_SCHEMA,
    EXACT_TYPES,
    PACKED_SCHEMA,
    InputEntry,
    ResidualEntry,
    TensorEntry,
    WeightEntry,
    checksum,
)
from hawq.files import write_whole
from hawq.layers import channel_axis, weight_name
from hawq.quantization import FakeQuantizer, Quantization, input_quantizer, original_weight, weight_quantizer
from hawq.quantization.attaching import INPUT
from hawq.quantization.residuals import RESIDUALS
from hawq.records import to_dict
from hawq.weights import COUNTER


def save(model: nn.Module, path: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Writes a quantised network: integer codes of b bits each, one scale per channel, every other tensor exactly.

    Batch counters are left out. A tensor that the network has under several names is stored once.

    Args:
        model: from `quantize`, `finetune` or `load`.
        path: of the file; an existing one is replaced once the new one is complete.
        about: JSON-ready facts to store with it (say, mean and std of the inputs).

    Raises:
        ValueError: the network is not quantised, a quantiser is still off, `about` is no JSON, or the network keeps
            something that is no dense tensor; names it.
    """
    return write_whole(Path(path), pack_network(model, about or {}, Pool()))


def pack_network(model: nn.Module, about: dict[str, Any], pool: Pool) -> bytes:
    """The whole file, its tensors collected by `pool`. How the plan was found is not stored. Raises as `save` does."""
    info = getattr(model, "quantization", None)
    if not isinstance(info, Quantization):
        raise ValueError(
            f"{type(model).__name__} is not quantised: pass what hawq.quantize or hawq.finetuning returned"
        )
    layers = dict(model.named_modules())
    weights = [
        pool.add_weight(name, layer, quantizer)
        for name, layer in layers.items()
        if (quantizer := weight_quantizer(layer)) is not None
    ]
    inputs = [
        pool.add_grid(name, quantizer)
        for name, layer in layers.items()
        if (quantizer := input_quantizer(layer)) is not None and quantizer.enabled  # one that is never called is off
    ]
    places = getattr(model, "residual_places", {})
    residuals = [
        pool.add_residual(name, quantizer, [step for step, key in places.items() if key == name])
        for name, quantizer in getattr(model, RESIDUALS, {}).items()
        if quantizer.enabled
    ]
    others = other_tensors(model)
    floats = [pool.add_float(name, x) for name, x in others.items() if x.dtype == torch.float32]
    exact = [pool.add_exact(name, x) for name, x in others.items() if x.dtype != torch.float32]
    header = {
        "schema": PACKED_SCHEMA,
        "blocks": [to_dict(block) for block in info.blocks],
        "plan": to_dict(replace(info.plan, limits=(), confidence=None)),
        "weights": [_without_defaults(entry) for entry in weights],
        "inputs": [_without_defaults(entry) for entry in inputs],
        "floats": [_without_defaults(entry) for entry in floats],
        "about": about,
    }
    if exact:
        header["tensors"] = [asdict(entry) for entry in exact]
    if residuals:
        header["residuals"] = [_without_defaults(entry) for entry in residuals]
    if exact or residuals or _needs_newer(model, layers, weights, inputs):
        header["schema"] = EXACT_SCHEMA
    tensors = pool.tensors()
    try:
        header["checksum"] = checksum(header, tensors)
        text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"about={about!r} cannot be written as JSON ({error}): give text, numbers and lists") from error
    return to_safetensors(tensors, {"hawq": text})


def _needs_newer(
    model: nn.Module, layers: dict[str, nn.Module], weights: list[WeightEntry], inputs: list[InputEntry]
) -> bool:
    """Whether readers of the older schema would misread the file: other axes or types, attentions, shared tensors."""
    names = [entry.name for entry in weights] + [entry.name for entry in inputs]
    attention = any(weight_name(layers[name]) != "weight" for name in names)
    shared = len(other_tensors(model)) < len(other_tensors(model, every_name=True))
    return attention or shared or any(entry.axis or entry.wide for entry in weights) or any(e.wide for e in inputs)


def _without_defaults(entry: WeightEntry | InputEntry | ResidualEntry | TensorEntry) -> dict[str, Any]:
    """The entry as JSON has it; fields that the older schema lacks only where they say something."""
    return {key: value for key, value in asdict(entry).items() if (key, value) not in _DEFAULTS}


_DEFAULTS = (("axis", 0), ("wide", False), ("dtype", "float32"))


class Pool:
    """Concatenates all tensors into a few long ones, in the order they are added, which the header lists."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add_weight(self, name: str, layer: nn.Module, quantizer: FakeQuantizer) -> WeightEntry:
        """Codes, scales, lowest codes and large values of the weight of a layer.

        Raises UserError where the quantiser is off, so that it has no grid yet.
        """
        if not quantizer.enabled:
            raise UserError(f"the quantiser of {name} is still off: quantise its block first (hawq.quantize does)")
        weight = original_weight(layer).detach()
        scale, low = self._add_codes(weight, quantizer)
        wide, large = weight.dtype == torch.float64, None
        if quantizer.keeps_large:
            flat = weight.reshape(-1)
            places = quantizer.is_large(weight).reshape(-1).nonzero().reshape(-1)
            self._add("large_places", places.to(torch.int32))
            self._add("wide" if wide else "large_values", flat[places] if wide else flat[places].float())
            large = places.numel()
        self._add_scale(scale, low, wide)
        axis = channel_axis(layer) if scale.numel() > 1 else 0
        shape = tuple(weight.shape)
        return WeightEntry(name, quantizer.bits, shape, large, scale.numel(), low.numel(), axis, wide)

    def add_grid(self, name: str, quantizer: FakeQuantizer) -> InputEntry:
        """Scale and lowest code of what enters a layer."""
        own = next(iter(quantizer.buffers()))
        scale, low, _ = quantizer.grid(torch.zeros(1, device=own.device))
        wide = scale.dtype == torch.float64
        self._add_scale(scale, low, wide)
        return InputEntry(name, quantizer.bits, quantizer.keeps_large, wide)

    def add_residual(self, name: str, quantizer: FakeQuantizer, after: Sequence[str]) -> ResidualEntry:
        """Scale and lowest code of what these steps of the network give."""
        grid = self.add_grid(name, quantizer)
        return ResidualEntry(name, grid.bits, grid.keeps_large, tuple(after), grid.wide)

    def add_float(self, name: str, tensor: Tensor) -> TensorEntry:
        """Values of a float32 tensor."""
        self._add("floats", tensor)
        return TensorEntry(name, tuple(tensor.shape))

    def add_exact(self, name: str, tensor: Tensor) -> TensorEntry:
        """Bytes of a tensor of another type. Raises UserError for a type that cannot be stored."""
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in EXACT_TYPES:
            raise UserError(f"{name} has the type {kind}, which the packed file cannot hold: convert it first")
        self._add("exact", _bytes_of(tensor))
        return TensorEntry(name, tuple(tensor.shape), kind)

    def _add(self, pool: str, values: Tensor) -> None:
        self._parts.setdefault(pool, []).append(values.detach().cpu().reshape(-1))

    def _add_codes(self, weight: Tensor, quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
        codes, scale, low = quantizer.codes(weight)
        self._add("codes", torch.from_numpy(pack((codes - low).float().cpu().numpy(), quantizer.bits)))
        return scale, low

    def _add_scale(self, scale: Tensor, low: Tensor, wide: bool) -> None:
        self._add("wide" if wide else "scales", scale if wide else scale.float())
        self._add("lows", low.to(torch.float16))  # exact: whole numbers and halves down to −255

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the file by name."""
        order = ("codes", "scales", "lows", "floats", "large_places", "large_values", "wide", "exact")
        return {name: torch.cat(self._parts[name]) for name in order if name in self._parts}


def other_tensors(model: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """What `model.state_dict()` holds besides quantised weights, quantisers and batch counters, each tensor once.

    Args:
        model: a quantised network.
        every_name: a tensor under all its names.

    Raises:
        UserError: something is no dense tensor; names it.
    """
    found: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, value in model.state_dict().items():
        if name.rpartition(".")[2] == COUNTER or name.startswith(f"{RESIDUALS}.") or _is_ours(model, name):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise UserError(
                f"{name} is no dense tensor, and the packed file holds only these: make it one or remove it"
            )
        place = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if every_name or place not in seen or not value.numel():
            found[name] = value
        seen.add(place)
    return found


def _is_ours(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to one of our quantisers or to a weight that one of them quantises."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part not in (INPUT, "parametrizations"):
            continue
        layer = model.get_submodule(".".join(parts[:position]))
        if part == INPUT and input_quantizer(layer) is not None:
            return True
        if part == "parametrizations" and parts[position + 1] == weight_name(layer):
            return weight_quantizer(layer) is not None
    return False


def _bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 (bytes,)."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return (torch.view_as_real(flat) if flat.is_complex() else flat).contiguous().view(torch.uint8)
