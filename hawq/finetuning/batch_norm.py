"""Statistics of batch norm: measured anew after quantisation, and frozen towards the end of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hawq.modes import eval_mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running statistics become the mean, each batch weighted alike, of what the batches (N, ...) give.

    The network runs as in evaluation, quantisers on and dropout off, but for its batch norms, which normalise by the
    batch (as `torch.optim.swa_utils.update_bn`). A layer that no batch reaches keeps what it has.
    """
    before = {norm: {name: x.clone() for name, x in norm.named_buffers()} for norm in batch_norms(model)}
    momenta = {norm: norm.momentum for norm in before}
    if not before:
        return
    with eval_mode(model):
        for norm in before:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch then keeps the equal-weighted mean
        try:
            for inputs in batches:
                model(inputs)
        finally:
            for norm, buffers in before.items():
                norm.momentum = momenta[norm]
                if not norm.num_batches_tracked:
                    norm.load_state_dict(buffers, strict=False)


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalises by the running statistics, which stay as they are, until the next `model.train()`."""
    for norm in batch_norms(model):
        norm.eval()
