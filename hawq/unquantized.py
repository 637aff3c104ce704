"""What quantisation leaves float: weights outside all blocks, and products that no layer of a block makes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hawq.attention import opened_attention
from hawq.layers import weight_name
from hawq.modes import eval_mode, gradients_for
from hawq.records import Block, FloatPart
from hawq.tracing import trace_layers

_WORTH_A_WARNING = 0.01  # share of weights or multiply–accumulates


def unquantized(model: nn.Module, blocks: Sequence[Block], example: Tensor) -> tuple[FloatPart, ...]:
    """What stays float outside `blocks`: first weights, then products, by name.

    Weights are parameters of two and more axes that no layer of a block holds (position embeddings, say, or an
    embedding that shares its weight with such a layer); vectors (biases, batch norm, layer scale) stay float in every
    network and are not listed. Products are the multiply–accumulates that one forward of `example` (N, ...) makes
    outside the layers of the blocks (of attention, say), per sample and by module.
    """
    layers = [layer for block in blocks for layer in block.layers]
    return (*_float_weights(model, layers), *_float_products(model, layers, example))


def float_share(blocks: Sequence[Block], parts: Sequence[FloatPart]) -> tuple[int, str]:
    """Level and text of a log entry on the `parts` that stay float beside `blocks`, which were traced."""
    weights, macs = sum(part.num_weights for part in parts), sum(part.macs for part in parts)
    of_weights = weights / max(weights + sum(block.num_weights for block in blocks), 1)
    of_macs = macs / max(macs + sum(block.macs or 0 for block in blocks), 1)
    level = logging.WARNING if max(of_weights, of_macs) >= _WORTH_A_WARNING else logging.INFO
    share = f"{100 * of_weights:.1f} % of the weights, {100 * of_macs:.1f} % of the multiply-accumulates"
    return level, f"stays float ({share}): {', '.join(map(str, parts))}"


def _float_weights(model: nn.Module, layers: Sequence[str]) -> list[FloatPart]:
    """Each parameter once, under the first name of a place that reads it as float."""
    modules = dict(model.named_modules())
    quantized = {(id(modules[layer]), weight_name(modules[layer])) for layer in layers}
    found: dict[int, FloatPart] = {}
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and (id(module), name) not in quantized:
                full = f"{path}.{name}" if path else name
                found.setdefault(id(parameter), FloatPart(full, num_weights=parameter.numel()))
    return list(found.values())


def _float_products(model: nn.Module, layers: Sequence[str], example: Tensor) -> list[FloatPart]:
    """An attention is a layer of its projections; what else it multiplies is float."""
    modules = dict(model.named_modules())
    attentions = [layer for layer in layers if isinstance(modules[layer], nn.MultiheadAttention)]
    traces = trace_layers(model, attentions, example) if attentions else {}
    own = {name: macs // len(example) for name, macs in _own_macs(model, example).items()}
    rest = {name: macs - (traces[name].macs if name in traces else 0) for name, macs in own.items()}
    wanted = {name: macs for name, macs in rest.items() if macs and (name not in layers or name in traces)}
    return [FloatPart(name or type(model).__name__, macs=macs) for name, macs in wanted.items()]


def _own_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply–accumulates of each module itself, without those of the modules in it; the model's own name is ''.

    No parameter asks for a gradient meanwhile: within the counter a view of one that does would ask for it even under
    `no_grad`, which has none, and the counter fails where a module is given such a view (a latent query, say).
    """
    counter = FlopCounterMode(display=False)
    math = sdpa_kernel(SDPBackend.MATH)  # fused attention is not counted
    with gradients_for(model, []), eval_mode(model), opened_attention(model), math, counter:
        model(example.detach().clone())
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
