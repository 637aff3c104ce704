"""Where numbers stop being finite: the first layer, in the order in which layers are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hawq.quantization import Quantization
from hawq.structures import tensors_in


class Diverged(Exception):
    """A loss or a gradient is not finite; the message says where it comes from."""


@torch.no_grad()
def name_culprit(model: nn.Module, forward: Callable[[], object], loss: float) -> str:
    """What is not finite first: a weight or an output as `forward` runs `model` again, the loss, a gradient.

    Gradients are searched from the last layer to the first, in the order of the backward pass.

    Args:
        model: holds the gradients of the step that failed.
        forward: runs `model` on the inputs of that step.
        loss: of that step.

    Returns:
        Its name, followed by its block where the model has blocks.
    """
    called: list[tuple[str, nn.Module]] = []
    culprits: list[str] = []

    def accuse(what: str, last: int) -> None:
        culprits.append(what + _block_of([name for name, _ in called[:last]], model))

    def before(name: str, module: nn.Module) -> None:
        called.append((name, module))
        for key, value in module.named_parameters(name, recurse=False):
            if not _is_finite(value):
                accuse(key, len(called))

    def after(name: str, output: Any) -> None:
        if not _is_finite(output):
            accuse(f"the output of {name or 'the network'}", len(called))

    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda module, _, name=name: before(name, module), prepend=True)
        )
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    if not culprits and not math.isfinite(loss):
        return "the loss of finite outputs"
    for place, (name, module) in reversed(list(enumerate(called, start=1))):
        for key, value in module.named_parameters(name, recurse=False):
            if not _is_finite(value.grad):
                accuse(f"the gradient of {key}", place)
    return next(iter(culprits), "the length of the gradient")


def _is_finite(value: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors_in(value))


def _block_of(called: Sequence[str], model: nn.Module) -> str:
    """The block of the last of the modules called, or the one before it; empty for a network without blocks."""
    quantization = getattr(model, "quantization", None)
    if not isinstance(quantization, Quantization):
        return ""
    blocks = {layer: block.name for block in quantization.blocks for layer in block.layers}
    for name in reversed(called):
        for layer, block in blocks.items():
            if f"{name}.".startswith(f"{layer}."):
                return f" (block {block})"
    return ""
