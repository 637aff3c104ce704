"""torch.compile, checked against the network as it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hawq.distributed import all_reduce
from hawq.errors import UserError
from hawq.finetuning.step import Batch, Network, Objective, add_gradients
from hawq.trials import mean_with_error

_TOLERANCES = {"float32": 0.01, "bfloat16": 0.1}  # relative; other rounding moves values to the neighbouring code
_ROUNDING = {"float32": 2.0**-16, "bfloat16": 2.0**-9}  # relative changes of inputs that are as small as rounding
_TRIES, _STANDARD_ERRORS = 6, 4.0  # batches changed that little, and the errors of their mean difference


def compiled(model: nn.Module, objective: Objective, batch: Batch, seed: int) -> Network:
    """`torch.compile` of a network in train mode, with the same random numbers; the network's state is unchanged.

    Where a block has just been quantised, rounding alone may change the loss of a batch by a tenth. So losses that
    disagree are compared again on copies of the batch that differ by as much as rounding does.

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
        pairs = [
            [_loss_once(model, network, objective, changed, seed) for network in (model, fast)]
            for changed in (_rounded_otherwise(batch, objective.precision, at) for at in range(_TRIES))
        ]
        if not _agree(torch.tensor(pairs, dtype=torch.float64), _TOLERANCES[objective.precision]):
            change = f"from {expected:.6g} to {found:.6g}"
            raise UserError(f"compile=true changes the loss of a batch {change}: give compile=false")
    return fast


def _rounded_otherwise(batch: Batch, precision: str, seed: int) -> Batch:
    """The batch with inputs that are changed by as much as rounding does."""
    inputs, targets = batch
    if not inputs.is_floating_point():
        return batch
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return inputs * (1 + _ROUNDING[precision] * noise).to(inputs), targets


def _agree(pairs: Tensor, tolerance: float) -> bool:
    """Whether losses (tries, 2) of both networks agree in the mean, but for a tolerance and four standard errors."""
    difference, error = mean_with_error(pairs[:, 1] - pairs[:, 0])
    return abs(difference) <= tolerance * float(pairs[:, 0].mean().abs()) + _STANDARD_ERRORS * error


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
