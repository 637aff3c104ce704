"""One optimiser step: loss, gradients of all its parts, the new weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.finetuning.distillation import Distillation

Batch = tuple[Tensor, Tensor]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is minimised: the mean loss of (outputs, targets), and what a teacher adds to it.

    Args:
        loss: the hard part.
        distillation: the soft part, or None.
        precision: "float32" for the network as it is, "bfloat16" for its forward under autocast; losses are float32.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    distillation: Distillation | None
    precision: str

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        """The loss of a network on one batch."""
        inputs, targets = batch
        reduced = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced):
            outputs = network(inputs)
        outputs = outputs.float() if reduced else outputs
        hard = self.loss(outputs, targets)
        return self.distillation.mix(hard, outputs, inputs) if self.distillation else hard


def add_gradients(network: Network, objective: Objective, batch: Batch, parts: int) -> Tensor:
    """Adds the gradient of the batch's loss to the parameters', one of `parts` pieces after the other; the loss.

    Each piece is weighted by its share of the batch, so for losses that are means over samples, and networks that see
    each sample alone (no batch norm), the sum is the whole batch's gradient.
    """
    inputs, targets = batch
    losses = []
    for piece in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        value = objective(network, piece) * (len(piece[0]) / len(inputs))
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.detach())
    return torch.stack(losses).sum()


def clip_gradient(model: nn.Module, clip_norm: float | None) -> None:
    """Shortens the gradient over all parameters together to at most `clip_norm`."""
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
