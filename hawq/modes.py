"""Running a network without changing its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each is back in its own mode, also a batch norm that was frozen alone."""
    modes = {module: module.training for module in model.modules()}
    if any(modes.values()):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            if module.training != training:  # setting an attribute of a module is slow
                module.training = training


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 as it is, without autocast and TF32; both are put back at the end."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def gradients_for(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Of the network's parameters `weights` alone ask for a gradient; afterwards each does again what it did."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def analysis_mode(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Eval mode, gradients for `weights` alone, full float32 without autocast or TF32; all restored at the end.

    The network gets copies of its inputs, so that one which changes them in place does not reach the caller's.
    """
    device = next(model.parameters()).device
    copies = model.register_forward_pre_hook(_with_copies)
    try:
        with gradients_for(model, weights), eval_mode(model), full_precision(device), torch.enable_grad():
            yield
    finally:
        copies.remove()


def _with_copies(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
