"""The packed file: a quantised network in one small safetensors file (layout in docs/formats.md)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.components import component
from hawq.export.bitpack import pack, unpack
from hawq.files import write_whole
from hawq.quantization import (
    BIT_WIDTHS,
    LSQ,
    FakeQuantizer,
    Quantization,
    Quantizer,
    attach,
    attach_input_quantizer,
    check_plan_fits,
    weight_quantizer,
)
from hawq.records import BitPlan, Block, Cost, Precision, from_dict, to_dict
from hawq.weights import load_strictly

PACKED_SCHEMA = "hawq.packed/2"
_INPUT = "input_quantizer"
_LONGEST = -1.2345678901234567e-100  # no finite number has more digits
_OFFSETS = 64  # digits that places in the file gain when the codes stand there too, and padding


@component("export/packed")
@dataclass(frozen=True)
class PackedExport:
    """Writes the packed file, and an ONNX file beside it on request.

    Args:
        onnx: also write `model.onnx`.
    """

    onnx: bool = False


class FrozenQuantizer(FakeQuantizer):
    """A quantiser with a fixed grid, as read back from a file."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, scale: Tensor, low: Tensor, *, keeps_large: bool) -> None:
        super().__init__(bits)
        self.keeps_large = keeps_large
        self.register_buffer("scale", scale)
        self.register_buffer("low", low)
        self.register_buffer("high", low + 2**bits - 1)
        self.enabled = True

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scale, self.low, self.high


def save(model: nn.Module, path: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Writes a quantised network: integer codes b bits each, one scale a channel, everything else as float32.

    Args:
        model: from `quantize` or `finetune`; any other raises ValueError.
        path: of the file, replaced as a whole once the new one is complete.
        about: JSON-ready facts to keep with it (say, mean and std of the inputs).
    """
    return write_whole(Path(path), _pack(model, about or {}, _Pool()))


def packed_overhead(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer | None = None,
    about: dict[str, Any] | None = None,
) -> int:
    """Bytes that the packed file of `model` holds beside the ⌈Σ b_i n_i / 8⌉ bytes of its weights' codes.

    Counted are scales, all float parameters and buffers, and the header; not exactly known before there is a plan are
    only the digits of the header's numbers and the last byte of each layer's codes, which are taken at their longest,
    as are the codes of a weight that several layers share. So no saved file is larger than predicted, and one with
    float activations is smaller by their missing steps.

    Args:
        model: the float network; it stays as it is.
        blocks: from `find_blocks`, traced with an example.
        quantizer: LSQ unless given.
        about: what `save` will be given.
    """
    cost = Cost(10**9, 10**9, _LONGEST, _LONGEST, _LONGEST, 10**13, 10**9, _LONGEST)
    precisions = {block.name: Precision(BIT_WIDTHS[-1], BIT_WIDTHS[-1]) for block in blocks}
    plan = BitPlan(precisions, "-" * 24, cost, _LONGEST, _LONGEST)
    network = attach(model, blocks, plan, quantizer or LSQ())
    codes = []
    for layer in network.modules():
        weight, grid = weight_quantizer(layer), getattr(layer, _INPUT, None)
        if weight is not None:
            original: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr, assignment]
            one_a_channel = original.flatten(1)[:, :1].reshape(-1, *[1] * (original.dim() - 1))
            weight.initialise(original if weight.keeps_large else one_a_channel)  # how many are large: all values tell
            codes.append(original.numel())
        if isinstance(grid, FakeQuantizer):
            grid.initialise(torch.linspace(-1, 1, 2, device=next(model.parameters()).device))
    stored_twice = sum(codes) - sum(block.num_weights for block in blocks)
    return (
        len(_pack(network, about or {}, _PoolWithoutCodes())) + _OFFSETS + stored_twice + sum(n % 8 > 0 for n in codes)
    )


def _pack(model: nn.Module, about: dict[str, Any], pool: _Pool) -> bytes:
    """The whole file, its tensors collected by `pool`. How the plan was found is no part of it."""
    info = getattr(model, "quantization", None)
    if not isinstance(info, Quantization):
        raise ValueError(
            f"{type(model).__name__} is not quantised: pass what hawq.quantize or hawq.finetuning returned"
        )
    layers = dict(model.named_modules())
    quantizers = {name: weight_quantizer(layer) for name, layer in layers.items()}
    inputs = {name: getattr(layer, _INPUT, None) for name, layer in layers.items()}
    header = {
        "schema": PACKED_SCHEMA,
        "blocks": [to_dict(block) for block in info.blocks],
        "plan": to_dict(replace(info.plan, limits=(), confidence=None)),
        "weights": [
            pool.add_weight(name, layers[name].parametrizations.weight.original, quantizer)  # type: ignore
            for name, quantizer in quantizers.items()
            if quantizer is not None
        ],
        "inputs": [
            pool.add_grid(name, grid)
            for name, grid in inputs.items()
            if isinstance(grid, FakeQuantizer) and grid.enabled  # a layer that is never called has no range
        ],
        "floats": [pool.add_float(name, tensor) for name, tensor in _float_tensors(model).items()],
        "about": about,
    }
    tensors = pool.tensors()
    header["checksum"] = _checksum(header, tensors)
    return to_safetensors(tensors, {"hawq": json.dumps(header, separators=(",", ":"))})


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of `model` (the same architecture, float) with the weights and input quantisers of a packed file.

    Weights are the dequantised codes, bit for bit what the saved network computed with; the copy is in eval mode.
    Raises FileNotFoundError, or ValueError for a file that is no packed network or belongs to another model.
    """
    path = Path(path)
    header, tensors = _read(path)
    blocks = tuple(from_dict(block, Block) for block in header["blocks"])
    plan = from_dict(header["plan"], BitPlan)
    check_plan_fits(blocks, plan)
    pool = _Reader(tensors)
    weights = {entry["name"]: pool.next_weight(entry) for entry in header["weights"]}
    grids = {entry["name"]: pool.next_grid(entry) for entry in header["inputs"]}
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
    return copied.eval()


def read_about(path: str | Path) -> dict[str, Any]:
    """The facts that `save` kept with the network."""
    about: dict[str, Any] = _read(Path(path))[0]["about"]
    return about


class _Pool:
    """Collects all tensors into a few long ones; the header says what stands where, in the order of adding."""

    def __init__(self) -> None:
        self._codes: list[Tensor] = []
        self._scales: list[Tensor] = []
        self._lows: list[Tensor] = []
        self._floats: list[Tensor] = []
        self._large_places: list[Tensor] = []
        self._large_values: list[Tensor] = []

    def add_weight(self, name: str, weight: Tensor, quantizer: FakeQuantizer) -> dict[str, Any]:
        scale, low = self._add_codes(weight.detach(), quantizer)
        large = None
        if quantizer.keeps_large:
            flat = weight.detach().reshape(-1)
            places = quantizer.is_large(weight.detach()).reshape(-1).nonzero().reshape(-1)
            self._large_places.append(places.to(torch.int32).cpu())
            self._large_values.append(_flat(flat[places]))
            large = places.numel()
        self._add_scale(scale, low)
        grid = {"scales": scale.numel(), "lows": low.numel()}
        return {"name": name, "bits": quantizer.bits, "shape": list(weight.shape), "large": large, **grid}

    def add_grid(self, name: str, quantizer: FakeQuantizer) -> dict[str, Any]:
        scale, low, _ = quantizer.grid(torch.zeros(1, device=next(iter(quantizer.buffers())).device))
        self._add_scale(scale, low)
        return {"name": name, "bits": quantizer.bits, "keeps_large": quantizer.keeps_large}

    def add_float(self, name: str, tensor: Tensor) -> dict[str, Any]:
        self._floats.append(_flat(tensor))
        return {"name": name, "shape": list(tensor.shape)}

    def _add_codes(self, weight: Tensor, quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
        codes, scale, low = quantizer.codes(weight)
        self._codes.append(torch.from_numpy(pack((codes - low).cpu().numpy(), quantizer.bits)))
        return scale, low

    def _add_scale(self, scale: Tensor, low: Tensor) -> None:
        self._scales.append(_flat(scale))
        self._lows.append(_flat(low).to(torch.float16))  # exact: whole numbers and halves down to −255

    def tensors(self) -> dict[str, Tensor]:
        pools = {
            "codes": self._codes,
            "scales": self._scales,
            "lows": self._lows,
            "floats": self._floats,
            "large_places": self._large_places,
            "large_values": self._large_values,
        }
        return {name: torch.cat(parts) for name, parts in pools.items() if parts}


class _PoolWithoutCodes(_Pool):
    """All but the codes, to see how long the rest is."""

    def _add_codes(self, weight: Tensor, quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
        self._codes.append(torch.zeros(0, dtype=torch.uint8))
        scale, low, _ = quantizer.grid(weight)
        return scale, low


class _Reader:
    """Takes the tensors of a `_Pool` out again, in the order they were added."""

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


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().reshape(-1)


def _float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What `model.state_dict()` holds as floating point, except quantised weights and quantisers."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not ({"parametrizations", _INPUT} & set(name.split(".")) and _is_ours(model, name))
        and isinstance(tensor, Tensor)
        and tensor.is_floating_point()
    }


def _is_ours(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to one of our quantisers or to a weight that one of them quantises."""
    parts = name.split(".")
    position = min(parts.index(key) for key in ("parametrizations", _INPUT) if key in parts)
    layer = model.get_submodule(".".join(parts[:position]))
    if parts[position] == _INPUT:
        return isinstance(getattr(layer, _INPUT), FakeQuantizer)
    return weight_quantizer(layer) is not None


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header without its checksum, keys sorted, and the bytes of all tensors, by name."""
    covered = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    if header.get("checksum") != _checksum(header, tensors):
        raise ValueError(f"{path} is damaged: its checksum is not the stored one")
    return header, tensors
