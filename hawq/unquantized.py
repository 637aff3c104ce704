"""What quantisation leaves float: weights outside all blocks, and products that no layer of a block makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hawq.modes import eval_mode
from hawq.records import Block, FloatPart


def unquantized(model: nn.Module, blocks: Sequence[Block], example: Tensor) -> tuple[FloatPart, ...]:
    """Weights of two and more axes that no block holds (position embeddings, say), and the multiply–accumulates that
    one forward of `example` (N, ...) makes outside the layers of the blocks (attention products, say), by module.

    Vectors (biases, batch norm, layer scale) stay float in every network and are not listed.
    """
    layers = {layer for block in blocks for layer in block.layers}
    modules = dict(model.named_modules())
    held = {id(modules[layer].weight) for layer in layers}
    weights = [
        FloatPart(name, num_weights=parameter.numel())
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in held
    ]
    products = [
        FloatPart(name or type(model).__name__, macs=macs // example.shape[0])
        for name, macs in _own_macs(model, example).items()
        if macs and name not in layers
    ]
    return (*weights, *products)


def _own_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply–accumulates of each module itself, without those of the modules in it; the model's own name is ''."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), eval_mode(model), sdpa_kernel(SDPBackend.MATH), counter:  # fused attention is not counted
        model(example)
    root = type(model).__name__
    totals = {
        path.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for path, flops in counter.get_flop_counts().items()
        if path != "Global"
    }
    own = dict(totals)
    for name, macs in totals.items():
        above = (name[:end] for end in range(len(name) - 1, -1, -1) if end == 0 or name[end] == ".")
        parent = next((place for place in above if place in totals), None)
        if name and parent is not None:
            own[parent] -= macs
    return own
