"""What is reconstructed at a time: modules that take tensors once per forward and give one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.blocks import own_blocks
from hawq.modes import eval_mode
from hawq.quantization import input_quantizer, weight_quantizer
from hawq.records import Block
from hawq.structures import tensors_in

_LOG = logging.getLogger(__name__)
_PROBES = (2, 3)  # samples in the two forwards that tell which tensors grow with the batch


@dataclass(frozen=True)
class Unit:
    """A module whose outputs are to stay what they are in the float network.

    Args:
        name: qualified name of the module.
        layers: planned layers in it, in the order of their block.
        elements: values per sample of its inputs and of its output.
        batched: whether each tensor among its arguments has rows for each sample, or is the same for all.
    """

    name: str
    layers: tuple[str, ...]
    elements: int
    batched: tuple[bool, ...]


def find_units(network: nn.Module, blocks: Sequence[Block], example: Tensor, units: str = "block") -> tuple[Unit, ...]:
    """The units of a quantised network, in the order in which its forward reaches them.

    A block is a unit where its layers lie in one module that holds no other block's layers, is called once per
    forward, and whose tensors have a number of rows proportional to the batch. Blocks that divide one of the network's
    own (`own_blocks`), as single layers do, are one unit together. What is no unit is taken apart into the network's
    own blocks, then into layers; a layer that is none either stays as it is. The log says which.

    Args:
        network: from `quantize`.
        blocks: that it was quantised by.
        example: a batch of inputs (N, ...).
        units: "block" or "layer".
    """
    layers = [layer for block in blocks for layer in block.layers]
    planned = tuple(layer for layer in layers if _is_planned(network, layer))
    own = own_blocks(network)
    calls = _probe(network, {home for layer in planned for home in _homes(layer)}, example)
    search = _Search(tuple(layers), planned, own, calls)
    groups = _together(blocks, own) if units == "block" else [(layer, (layer,)) for layer in layers]
    found = [unit for name, members in groups for unit in search.units(name, members)]
    order = {name: place for place, name in enumerate(calls)}
    return tuple(sorted(found, key=lambda unit: order[unit.name]))


def _together(blocks: Sequence[Block], own: Mapping[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Names and layers of what is to be one unit: blocks, or a block of the network's own that several divide."""
    homes = [{own[layer] for layer in block.layers} for block in blocks]
    across = {home for among in homes if len(among) > 1 for home in among}  # in part of a block that reaches beyond
    groups: dict[tuple[bool, str], tuple[str, ...]] = {}
    for block, (home, *others) in zip(blocks, homes, strict=True):
        divides = not others and home not in across
        key = divides, home if divides else block.name
        groups[key] = (*groups.get(key, ()), *block.layers)
    return [(name, layers) for (_, name), layers in groups.items()]


@dataclass(frozen=True)
class _Search:
    """What tells units apart: all layers of all blocks, those with a quantiser that is on, each one's own block."""

    layers: tuple[str, ...]
    planned: tuple[str, ...]
    own: Mapping[str, str]
    calls: Mapping[str, _Calls]

    def units(self, name: str, layers: Sequence[str]) -> list[Unit]:
        """The layers as one unit, or as the units of their parts; `name` is theirs in the log."""
        members = tuple(layer for layer in layers if layer in self.planned)
        if not members:
            return []
        home = _enclosing(members)
        if _is_unit(self.calls.get(home)) and (len(layers) == 1 or self._is_alone(home, layers)):
            return [self.calls[home].unit(home, members)]
        if len(layers) == 1:
            _LOG.warning("%s: rounded to nearest, not reconstructed (not called exactly once)", members[0])
            return []
        parts = self._parts(layers)
        how = "layer by layer" if len(parts) == len(layers) else "in the blocks of the network itself"
        _LOG.warning("%s is no module of its own with one output: reconstructed %s", name, how)
        return [unit for part, inside in parts.items() for unit in self.units(part, inside)]

    def _is_alone(self, home: str, layers: Sequence[str]) -> bool:
        """Whether a module holds no other layers than these."""
        return all(layer in layers for layer in self.layers if home in _homes(layer))

    def _parts(self, layers: Sequence[str]) -> dict[str, list[str]]:
        """The layers by their own blocks, or one by one where they have one block."""
        parts: dict[str, list[str]] = {}
        for layer in layers:
            parts.setdefault(self.own[layer], []).append(layer)
        return parts if len(parts) > 1 else {layer: [layer] for layer in layers}


def _is_planned(network: nn.Module, layer: str) -> bool:
    """Whether a layer has a quantiser that is on."""
    module = network.get_submodule(layer)
    made = (weight_quantizer(module), input_quantizer(module))
    return any(one is not None and one.enabled for one in made)


def _homes(layer: str) -> list[str]:
    """A layer's name, and those of the modules around it but the network."""
    parts = layer.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _enclosing(layers: Sequence[str]) -> str:
    """The smallest module that holds all named layers; '' for the network itself."""
    shared = [home for home in _homes(layers[0]) if all(home in _homes(layer) for layer in layers)]
    return shared[-1] if shared else ""


@dataclass
class _Calls:
    """What two forwards of different batch sizes saw of a module."""

    shapes: list[list[tuple[int, ...]]] = field(default_factory=list)  # of each call: its inputs', then its output's
    sizes: list[int] = field(default_factory=list)  # of the batch, in each call
    is_real: bool = True
    elements: int = 0

    def rows(self) -> list[str]:
        """How each tensor, the output last, changes with the batch; none where the two calls cannot be compared."""
        if self.sizes != list(_PROBES) or not self.is_real or len(self.shapes[0]) != len(self.shapes[1]):
            return []
        return [_rows(small, large) for small, large in zip(*self.shapes, strict=True)]

    def unit(self, name: str, layers: tuple[str, ...]) -> Unit:
        """The unit that these calls show."""
        return Unit(name, layers, self.elements, tuple(kind == "batched" for kind in self.rows()[:-1]))


def _is_unit(calls: _Calls | None) -> bool:
    """Whether a module was called once in each forward with rows in proportion to the batch, and gave a real tensor."""
    *inputs, output = (calls and calls.rows()) or ["other"]
    return output == "batched" and "batched" in inputs and "other" not in inputs


def _rows(small: tuple[int, ...], large: tuple[int, ...]) -> str:
    """Whether the first axis grows with the batch while all others stay ("batched"), or nothing does ("constant")."""
    if small == large:
        return "constant"
    n, m = _PROBES
    grows = bool(small) and small[0] % n == 0 and small[0] * m == large[0] * n and small[1:] == large[1:]
    return "batched" if grows else "other"


@torch.no_grad()
def _probe(network: nn.Module, names: set[str], example: Tensor) -> dict[str, _Calls]:
    """What the named modules take and give in two forwards, in the order in which the forward reaches them."""
    calls: dict[str, _Calls] = {}
    size = 0

    def begin(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(name, _Calls()).shapes.append([tuple(x.shape) for x in tensors_in((args, kwargs))])

        return hook

    def end(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen, tensor = calls[name], next(tensors_in(output), None)
            seen.sizes.append(size)
            seen.is_real &= tensor is not None and tensor.is_floating_point()
            if tensor is not None:
                seen.shapes[-1].append(tuple(tensor.shape))
                entered = sum(x.numel() for x in tensors_in((args, kwargs)))
                seen.elements = (entered + tensor.numel()) // size

        return hook

    modules = {name: network.get_submodule(name) for name in names}
    hooks = [m.register_forward_pre_hook(begin(name), prepend=True, with_kwargs=True) for name, m in modules.items()]
    hooks += [m.register_forward_hook(end(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with eval_mode(network), opened_attention(network):
            for size in _PROBES:
                network(example[:1].expand(size, *example.shape[1:]).clone())
    finally:
        for hook in hooks:
            hook.remove()
    return calls
