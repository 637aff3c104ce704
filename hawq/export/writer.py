"""Writing a packed file, and its size beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from hawq.export.bitpack import pack
from hawq.export.schema import PACKED_SCHEMA, checksum
from hawq.files import write_whole
from hawq.quantization import LSQ, FakeQuantizer, Quantization, Quantizer, attach, weight_quantizer
from hawq.quantization.residuals import RESIDUALS
from hawq.records import BIT_WIDTHS, BitPlan, Block, Cost, Precision, to_dict

_INPUT = "input_quantizer"
_LONGEST = -1.2345678901234567e-100  # no finite number has more digits
_OFFSETS = 64  # digits that offsets in the file gain when the codes stand there too, and padding


def save(model: nn.Module, path: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Writes a quantised network: integer codes of b bits each, one scale per channel, everything else as float32.

    Args:
        model: from `quantize` or `finetune`; any other raises ValueError.
        path: of the file; an existing one is replaced once the new one is complete.
        about: JSON-ready facts to store with it (say, mean and std of the inputs).
    """
    return write_whole(Path(path), _pack(model, about or {}, _Pool()))


def packed_overhead(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer | None = None,
    about: dict[str, Any] | None = None,
) -> int:
    """Bytes that the packed file of `model` holds beside the ⌈Σ b_i n_i / 8⌉ bytes of its weights' codes.

    It counts scales, all float parameters and buffers, and the header. Unknown before there is a plan are only the
    digits of the header's numbers and the last byte of each layer's codes; both are taken at their longest, as are the
    codes of a weight that several layers share. So no saved file is larger than predicted; one with float activations
    is smaller by their missing steps.

    Args:
        model: the float network; left unchanged.
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
    for grid in getattr(network, RESIDUALS, nn.ModuleDict()).values():
        grid.initialise(torch.linspace(-1, 1, 2, device=next(model.parameters()).device))
    stored_twice = sum(codes) - sum(block.num_weights for block in blocks)
    return (
        len(_pack(network, about or {}, _PoolWithoutCodes())) + _OFFSETS + stored_twice + sum(n % 8 > 0 for n in codes)
    )


def _pack(model: nn.Module, about: dict[str, Any], pool: _Pool) -> bytes:
    """The whole file, its tensors collected by `pool`. How the plan was found is not stored."""
    info = getattr(model, "quantization", None)
    if not isinstance(info, Quantization):
        raise ValueError(
            f"{type(model).__name__} is not quantised: pass what hawq.quantize or hawq.finetuning returned"
        )
    layers = dict(model.named_modules())
    quantizers = {name: weight_quantizer(layer) for name, layer in layers.items()}
    inputs = {name: getattr(layer, _INPUT, None) for name, layer in layers.items()}
    residuals = getattr(model, RESIDUALS, {})
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
        **({"residuals": [pool.add_residual(model, *one) for one in residuals.items()]} if residuals else {}),
        "floats": [pool.add_float(name, tensor) for name, tensor in _float_tensors(model).items()],
        "about": about,
    }
    tensors = pool.tensors()
    header["checksum"] = checksum(header, tensors)
    return to_safetensors(tensors, {"hawq": json.dumps(header, separators=(",", ":"))})


class _Pool:
    """Concatenates all tensors into a few long ones; the header lists them in the order they were added."""

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

    def add_residual(self, model: nn.Module, name: str, quantizer: FakeQuantizer) -> dict[str, Any]:
        places = [step for step, key in model.residual_places.items() if key == name]  # type: ignore[union-attr, operator]
        return {**self.add_grid(name, quantizer), "after": places}

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
    """All but the codes, to measure the rest."""

    def _add_codes(self, weight: Tensor, quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
        self._codes.append(torch.zeros(0, dtype=torch.uint8))
        scale, low, _ = quantizer.grid(weight)
        return scale, low


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().reshape(-1)


def _float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What `model.state_dict()` holds as floating point, except quantised weights and quantisers."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{RESIDUALS}.")
        and not ({"parametrizations", _INPUT} & set(name.split(".")) and _is_ours(model, name))
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
