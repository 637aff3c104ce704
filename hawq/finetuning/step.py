"""The loss of a step and its gradient, in micro-batches."""

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
    """What is minimised: the mean loss of (outputs, targets), mixed with that of a teacher.

    Args:
        loss: the hard part.
        distillation: the soft part, or None.
        precision: "float32" for the network as it is, "bfloat16" for its forward under autocast; losses are float32.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    distillation: Distillation | None
    precision: str

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        """The loss, a scalar, of a network on one batch (inputs (N, ...), targets (N, ...))."""
        inputs, targets = batch
        outputs = self.outputs(network, inputs)
        hard = self.loss(outputs, targets)
        if not self.distillation:
            return hard
        return self.distillation.mix(hard, outputs, self.outputs(self.distillation.teach, inputs))

    def outputs(self, network: Network, inputs: Tensor) -> Tensor:
        """The network's outputs for `inputs` (N, ...), computed in this precision and returned as float32."""
        reduced = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced):
            outputs = network(inputs)
        return outputs.float() if reduced else outputs


def add_gradients(network: Network, objective: Objective, batch: Batch, parts: int) -> Tensor:
    """Adds the gradient of the batch's loss to the parameters', one micro-batch after the other; returns the loss.

    Each micro-batch is weighted by its share of the batch, so for losses that are means over samples, and networks that
    process each sample alone (no batch norm), the sum is the gradient of the whole batch. In a process group the batch
    is that of all processes together, and neither gradients nor losses are reduced over processes yet.

    Args:
        network: called with inputs (N, ...).
        objective: the loss.
        batch: (inputs (N, ...), targets (N, ...)).
        parts: number of micro-batches.
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
    """‖∂L/∂θ‖₂ over all parameters together, a scalar."""
    return get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
