"""Bias correction: the mean output of each layer becomes the float one's (Nagel et al., 1906.04721, §4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hawq.layers import TRANSPOSED
from hawq.modes import eval_mode
from hawq.reconstruction.cache import Inputs
from hawq.reconstruction.optimizing import Data
from hawq.reconstruction.units import Unit

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
_BATCH = 64


@torch.no_grad()
def correct_biases(model: nn.Module, network: nn.Module, unit: Unit, data: Data, error: float) -> float:
    """b ← b + E[z_float] − E[z] per output channel, layer after layer of a unit; undone where the unit's error grows.

    Args:
        model: the float network.
        network: the quantised one, changed in place.
        unit: whose layers with a bias are corrected.
        data: the unit's inputs in both networks.
        error: of the unit so far.

    Returns:
        The error of the unit now.
    """
    assert data.exact is not None
    for name in unit.layers:
        layer = network.get_submodule(name)
        bias = getattr(layer, "bias", None)
        if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or bias is None:
            continue
        own, exact = (
            _mean_output(net.get_submodule(unit.name), net.get_submodule(name), inputs)
            for net, inputs in ((network, data.inputs), (model, data.exact))
        )
        if own is None or exact is None:
            continue
        old = bias.detach().clone()
        bias.data += exact - own
        corrected = data.total(network.get_submodule(unit.name))
        if corrected < error:
            error = corrected
        else:
            bias.data.copy_(old)
    return error


def _mean_output(module: nn.Module, layer: nn.Module, inputs: Inputs) -> Tensor | None:
    """Mean of a layer's outputs per channel, (channels,), while a module that holds it runs on all its inputs."""
    totals: list[Tensor] = []
    count = 0

    def add(_: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
        nonlocal count
        rows = output.movedim(1, -1) if isinstance(layer, _CONVOLUTIONS) else output
        rows = rows.reshape(-1, rows.shape[-1])
        totals.append(rows.sum(0, dtype=torch.float64))
        count += len(rows)

    hook = layer.register_forward_hook(add)
    try:
        with eval_mode(module):
            for first in range(0, len(inputs.columns[0].values), _BATCH):
                inputs.call(module, inputs.at(slice(first, first + _BATCH)))
    finally:
        hook.remove()
    return (torch.stack(totals).sum(0) / count).to(inputs.columns[0].dtype) if count else None
