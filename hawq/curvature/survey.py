"""One forward over all samples: the mean loss, the outputs, and how much each sample curves the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.curvature.double_backward import lacks_second_derivative
from hawq.curvature.samples import Samples
from hawq.distributed import all_reduce
from hawq.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]

_WIDEST = 2048  # outputs of one sample, beyond which they are not kept
_DRAWS = 32  # of signs; with few, two classes of equal sign would hide that a sample wavers between them


@dataclass(frozen=True)
class Survey:
    """What one forward over all samples shows.

    `influence` is |εᵀSε| of each sample of this process, S = ∂²L/∂z² of its own loss by the outputs z, ε random signs
    (1 where S does not exist), and `residual` is ‖∂L/∂z‖² of its own loss; `outputs` are (n, C), or None where they are
    no matrix or too wide to keep.
    """

    mean_loss: float
    influence: list[float]
    residual: list[float]
    outputs: Tensor | None


def survey(model: nn.Module, loss: Loss, samples: Samples, device: torch.device) -> Survey:
    """One forward over all samples, in the mode that the network is in.

    Raises:
        UserError: a mean loss that is not finite.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    influence: list[float] = []
    residual: list[float] = []
    rows: list[Tensor] = []
    for (inputs, targets), share in samples.weighted():
        with torch.no_grad():
            outputs = model(inputs)
        total += share * float(loss(outputs, targets))
        curvature, slope = _output_curvature(loss, outputs, targets)
        influence += [1.0] * len(inputs) if curvature is None else curvature.tolist()
        residual += [1.0] * len(inputs) if slope is None else slope.tolist()
        if curvature is not None and outputs.dim() == 2 and outputs.shape[1] <= _WIDEST:
            rows.append(outputs)
    all_reduce([total])
    if not math.isfinite(float(total)):
        raise UserError(
            f"the mean loss of the analysed samples is {float(total)}: a Hessian needs a finite one, check the weights"
        )
    one_width = len({row.shape[1] for row in rows}) == 1
    return Survey(float(total), influence, residual, torch.cat(rows) if one_width else None)


def _output_curvature(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """|ε_nᵀ S ε_n| of each sample n (N,), mean over random draws of ε, and ‖∂L/∂z_n‖² (N,).

    None for outputs that are no tensor; the first also for a loss that is linear or can be differentiated only once.
    """
    if not isinstance(outputs, Tensor):
        return None, None
    if outputs.dim() == 1:  # one output per sample
        return _output_curvature(lambda column, truth: loss(column[:, 0], truth), outputs[:, None], targets)
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets), leaf, create_graph=True, materialize_grads=True)
    slope = (len(outputs) * gradient.detach()).flatten(1).square().sum(1)  # × N: that of the sample's own loss
    if not gradient.requires_grad:
        return None, slope
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(_DRAWS):
        signs = (torch.randint(2, outputs.shape[1:], generator=generator) * 2 - 1).to(outputs)
        signs = signs.expand_as(outputs)  # the same for every sample: influence does not depend on how batches are cut
        try:
            (row,) = torch.autograd.grad(gradient, leaf, signs, retain_graph=True, materialize_grads=True)
        except RuntimeError as error:
            if lacks_second_derivative(error):
                return None, slope
            raise
        draws.append((row * signs).flatten(1).sum(1).abs())
    return len(outputs) * torch.stack(draws).mean(0), slope
