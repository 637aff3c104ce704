"""What one forward pass does in each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.errors import UserError
from hawq.layers import TRANSPOSED, layer_inputs, weight_of
from hawq.modes import eval_mode


@dataclass
class LayerTrace:
    """What one forward pass did in one layer, per sample: multiply–accumulates, and elements that entered it."""

    macs: int = 0
    num_activations: int = 0
    reads_image: bool = False
    called: bool = False


def trace_layers(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, LayerTrace]:
    """Runs `example` (N, ...) once in eval mode, without gradients, and records each named layer.

    Raises UserError for an example without samples.
    """
    if not len(example):
        raise UserError("the example has no samples: give an input of at least one")
    example = example.clone()  # a network may change its input in place
    traces = {name: LayerTrace() for name in names}
    layers = dict(model.named_modules())
    hooks = [layers[name].register_forward_hook(_recorder(traces[name], example), with_kwargs=True) for name in names]
    try:
        with torch.no_grad(), eval_mode(model), opened_attention(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return traces


def _recorder(trace: LayerTrace, example: Tensor) -> Callable[..., None]:
    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        trace.called = True
        inputs = layer_inputs(layer, args, kwargs)
        trace.macs += _macs(layer, args, kwargs, output) // len(example)
        for x in inputs:
            if _storage(x) == _storage(example) and x.numel() == example.numel():
                trace.reads_image = True
            else:
                trace.num_activations += x.numel() // len(example)

    return record


def _macs(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Multiply–accumulates of one call on a whole batch."""
    weight = weight_of(layer)
    if isinstance(layer, nn.MultiheadAttention):  # three projections, each of a third of the weight
        entering = [*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
        return sum(x.numel() for x in entering) * layer.embed_dim
    positions = layer_inputs(layer, args, kwargs)[0] if isinstance(layer, TRANSPOSED) else output
    return positions.numel() // weight.shape[0] * weight.numel()


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor lies in; unlike an address it is there on the meta device too."""
    return int(tensor.untyped_storage()._cdata)
