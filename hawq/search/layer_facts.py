"""What HAQ's agent sees of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hawq.allocation.problem import Group, Problem
from hawq.layers import weight_of


@dataclass(frozen=True)
class LayerFacts:
    """The layer with the most weights of a group of tied blocks, as HAQ describes it (1811.08886, eq. 1).

    Args:
        depthwise: whether it convolves each channel by itself.
        in_channels, out_channels: of the layer.
        stride, kernel: 0 and 1 for a linear layer.
        num_weights: of the whole group.
        map_size: positions of its input, height times width; 1 for a vector.
    """

    depthwise: bool
    in_channels: int
    out_channels: int
    stride: int
    kernel: int
    num_weights: int
    map_size: int


def layer_facts(model: nn.Module, problem: Problem, example: Tensor) -> tuple[LayerFacts, ...]:
    """The facts of each group of a problem; the sizes of feature maps are those of one input (1, ...)."""
    layers = dict(model.named_modules())
    largest = {id(group): _largest(group, layers) for group in problem.groups}
    sizes = _map_sizes(model, {name: layers[name] for name in largest.values()}, example)
    return tuple(_facts(group, layers[largest[id(group)]], sizes[largest[id(group)]]) for group in problem.groups)


def _largest(group: Group, layers: Mapping[str, nn.Module]) -> str:
    names = [name for block in group.blocks for name in block.layers]
    return max(names, key=lambda name: weight_of(layers[name]).numel())


def _facts(group: Group, layer: Any, map_size: int) -> LayerFacts:
    num_weights = sum(block.num_weights for block in group.blocks)
    if hasattr(layer, "kernel_size"):
        depthwise = layer.groups == layer.in_channels
        channels = layer.in_channels, layer.out_channels
        return LayerFacts(depthwise, *channels, layer.stride[0], layer.kernel_size[0], num_weights, map_size)
    out_channels, in_channels = weight_of(layer).shape[:2]
    return LayerFacts(False, in_channels, out_channels, 0, 1, num_weights, map_size)


def _map_sizes(model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> dict[str, int]:
    """Layer → positions of its input in one forward pass; 1 for one that is not called or takes vectors."""
    import torch

    from hawq.layers import layer_inputs
    from hawq.modes import eval_mode

    sizes = dict.fromkeys(layers, 1)

    def listen(name: str) -> Any:
        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for x in layer_inputs(layer, args, kwargs):
                sizes[name] = x[0, 0].numel() if x.dim() > 2 else 1

        return see

    hooks = [layer.register_forward_pre_hook(listen(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with eval_mode(model), torch.no_grad():
            model(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return sizes
