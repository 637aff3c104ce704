"""Modules that stand in the places of the weights' quantisers for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from hawq.layers import weight_identity, weight_name
from hawq.quantization import FakeQuantizer, original_weight, weight_quantizer

StandIn = TypeVar("StandIn", bound=nn.Module)


def stand_ins(
    layers: Iterable[nn.Module], make: Callable[[FakeQuantizer, Tensor], StandIn | None]
) -> dict[nn.Module, StandIn]:
    """Layer → what `make` gives for its weight's quantiser and the float weight; None for a layer that keeps its own.

    Layers without a quantiser that is switched on are left out; layers that share a weight share what stands in for it.
    """
    made: dict[int, StandIn | None] = {}
    found: dict[nn.Module, StandIn] = {}
    for layer in layers:
        quantizer = weight_quantizer(layer)
        if quantizer is None or not quantizer.enabled:
            continue
        key = weight_identity(layer)
        if key not in made:
            made[key] = make(quantizer, original_weight(layer))
        one = made[key]
        if one is not None:
            found[layer] = one
    return found


@contextmanager
def standing_in(modules: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """While active, each layer's weight is made by the module given for it."""
    chains: dict[nn.Module, Any] = {layer: layer.parametrizations[weight_name(layer)] for layer in modules}  # type: ignore[union-attr, index]
    quantizers = {layer: chain[0] for layer, chain in chains.items()}
    try:
        for layer, module in modules.items():
            chains[layer][0] = module
        yield
    finally:
        for layer, quantizer in quantizers.items():
            chains[layer][0] = quantizer
