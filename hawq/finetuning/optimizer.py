"""Optimisers by their names in timm, with weight decay on weights alone."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from hawq.quantization import FakeQuantizer

_SCALE = "lr_scale"  # of a group, as timm names it
_COMMON = ("sgd", "momentum", "adam", "adamw", "rmsprop")  # known to work, so that checking them needs no timm


def check_optimizer(name: str) -> None:
    """Raises ValueError where `make_optimizer` would refuse the name on this machine."""
    if name not in _COMMON:
        make_optimizer(nn.Linear(1, 1), name, 0.1, 0.9, 0.0)


def make_optimizer(
    model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float, quantizer_lr_scale: float = 1.0
) -> Optimizer:
    """timm's optimiser `name`; decay acts on parameters of two axes or more that belong to no quantiser.

    `momentum` is that of SGD, Nesterov's where the name stands for it, and of its relatives; Adam's has none. What
    quantisers learn has a group of its own with the factor `quantizer_lr_scale`; see `set_learning_rate`.

    Raises:
        ValueError: timm has no such optimiser, it lacks a package or device, or it needs second derivatives.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info  # here, because timm takes seconds to import

    try:
        info = get_optimizer_info(name)
        nesterov: dict[str, Any] = {"nesterov": momentum > 0} if (info.defaults or {}).get("nesterov") else {}
        if info.second_order:
            raise ValueError("it differentiates twice")
        groups = _parameter_groups(model, weight_decay, quantizer_lr_scale)
        return create_optimizer_v2(groups, name, lr=lr, momentum=momentum, weight_decay=weight_decay, **nesterov)
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(
            f"optimizer={name!r} cannot be used ({error}): give sgd, adamw or another name of timm.optim"
        ) from error


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the rate of each group to `lr` times the group's factor, 1 unless it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_SCALE, 1.0)


def _parameter_groups(model: nn.Module, weight_decay: float, quantizer_lr_scale: float) -> list[dict[str, Any]]:
    quantizers = (module for module in model.modules() if isinstance(module, FakeQuantizer))
    owned = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    learned: list[nn.Parameter] = []  # by quantisers
    for parameter in model.parameters():
        if id(parameter) in owned:
            learned.append(parameter)
        else:
            (weights if parameter.dim() > 1 else others).append(parameter)
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    own = {"params": learned, "weight_decay": 0.0, _SCALE: quantizer_lr_scale}
    return [*groups, own] if learned else groups
