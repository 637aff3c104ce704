"""One optimiser step: loss, gradients of all its parts, the new weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hawq.distributed import all_reduce_sum, world_size
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
        outputs = self.outputs(network, inputs)
        hard = self.loss(outputs, targets)
        if not self.distillation:
            return hard
        return self.distillation.mix(hard, outputs, self.outputs(self.distillation.teach, inputs))

    def outputs(self, network: Network, inputs: Tensor) -> Tensor:
        """The network's outputs, computed in this precision."""
        reduced = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced):
            outputs = network(inputs)
        return outputs.float() if reduced else outputs


def add_gradients(network: Network, objective: Objective, batch: Batch, parts: int) -> Tensor:
    """Adds the gradient of the batch's loss to the parameters', one of `parts` pieces after the other; the loss.

    Each piece is weighted by its share of the batch, so for losses that are means over samples, and networks that see
    each sample alone (no batch norm), the sum is the whole batch's gradient. In a process group the batch is that of
    all processes together, and what they find is still to be added up.
    """
    inputs, targets = batch
    samples = all_reduce_sum(len(inputs), inputs.device)
    parts = min(parts, samples // world_size())  # as many on every process, none of them empty
    losses = []
    for piece in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        value = objective(network, piece) * (len(piece[0]) / samples)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.detach())
    return torch.stack(losses).sum()


def gradient_length(model: nn.Module) -> Tensor:
    """‖∂L/∂θ‖₂ over all parameters together."""
    return get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
