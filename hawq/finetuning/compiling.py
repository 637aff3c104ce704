"""torch.compile, checked against the network as it is."""

from __future__ import annotations

import math

import torch
from torch import nn

from hawq.distributed import all_reduce
from hawq.errors import UserError
from hawq.finetuning.step import Batch, Network, Objective, add_gradients

_TOLERANCES = {"float32": 0.01, "bfloat16": 0.1}  # relative; other rounding moves values to the neighbouring code


def compiled(model: nn.Module, objective: Objective, batch: Batch, seed: int) -> Network:
    """`torch.compile` of a network in train mode, with the same random numbers; the network's state is unchanged.

    Args:
        model: the network in train mode.
        objective: the loss, which must agree between both, forward and backward.
        batch: (inputs (N, ...), targets (N, ...)) that it is compared on.
        seed: of the randomness inside the network.

    Raises:
        UserError: this machine cannot compile, or the compiled network gives a different loss.
    """
    torch.compiler.reset()  # quantisers that were switched on since would count against the limit of recompilations
    fast: Network = torch.compile(model, options={"fallback_random": True})
    expected = _loss_once(model, model, objective, batch, seed)
    try:
        found = _loss_once(model, fast, objective, batch, seed)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"compile=true fails here ({reason}): give compile=false, or install a compiler") from error
    if not math.isclose(found, expected, rel_tol=_TOLERANCES[objective.precision]):
        change = f"from {expected:.6g} to {found:.6g}"
        raise UserError(f"compile=true changes the loss of a batch {change}: give compile=false")
    return fast


def _loss_once(model: nn.Module, network: Network, objective: Objective, batch: Batch, seed: int) -> float:
    """The loss of one forward and backward; afterwards gradients are cleared and buffers restored."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(seed)
    try:
        loss = add_gradients(network, objective, batch, 1)
        all_reduce([loss])
        return float(loss)
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
