"""The loss of a step and its gradient, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hawq.distributed import all_reduce_sum, world_size
from hawq.errors import UserError
from hawq.finetuning.distillation import Distillation
from hawq.structures import described, main_output, map_tensors, tensors_in

Batch = tuple[Tensor, Any]  # inputs (N, ...), and targets (N, ...) or a structure of such tensors
Network = Callable[[Tensor], Any]


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of a network's main output (N, K, ...): the first of a tuple, as Inception's in training.

    Args:
        label_smoothing: 0 to 1.
    """

    label_smoothing: float = 0.0

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The loss, a scalar. Raises UserError for outputs or targets that it cannot be sure of."""
        if unsure := _unsure(outputs, targets):
            raise UserError(
                f"{unsure}, which cross-entropy does not take: give loss=, a function of (outputs, targets)"
            )
        scores = main_output(outputs)
        try:
            return nn.functional.cross_entropy(scores, targets, label_smoothing=self.label_smoothing)
        except (IndexError, ValueError) as error:
            shapes = f"outputs of shape {tuple(scores.shape)} and targets of shape {tuple(targets.shape)}"
            reason = " ".join(str(error).split())
            raise UserError(
                f"cross-entropy of {shapes} cannot be computed ({reason}): give targets 0 … {scores.shape[1] - 1}"
            ) from error


def _unsure(outputs: Any, targets: Any) -> str | None:
    """What keeps cross-entropy from knowing its arguments, or None."""
    if not isinstance(outputs, (Tensor, tuple, list)):
        return f"the network's output is {described(outputs)}"
    if main_output(outputs).dim() < 2:
        return f"the network's output is of shape {tuple(main_output(outputs).shape)}"
    return None if isinstance(targets, Tensor) else f"a batch's target is {described(targets)}"


@dataclass(frozen=True)
class Objective:
    """What is minimised: the mean loss of (outputs, targets), mixed with that of a teacher.

    Args:
        loss: the hard part.
        distillation: the soft part, or None.
        precision: "float32" for the network as it is, "bfloat16" for its forward under autocast; losses are float32.
    """

    loss: Callable[[Any, Any], Tensor]
    distillation: Distillation | None
    precision: str

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        """The loss, a scalar, of a network on one batch (inputs (N, ...), targets (N, ...)).

        Raises UserError for a loss that is no mean over the batch.
        """
        inputs, targets = batch
        outputs = self.outputs(network, inputs)
        hard = self.loss(outputs, targets)
        if not isinstance(hard, Tensor) or hard.numel() != 1:
            form = f"of shape {tuple(hard.shape)}" if isinstance(hard, Tensor) else described(hard)
            raise UserError(f"the loss is {form}: give one number, the mean over the batch (reduction='mean')")
        if not self.distillation:
            return hard
        taught = self.outputs(self.distillation.teach, inputs)
        return self.distillation.mix(hard, outputs, taught, classes=_name_classes(targets))

    def outputs(self, network: Network, inputs: Tensor) -> Any:
        """The network's outputs for `inputs` (N, ...), computed in this precision and returned as float32.

        A network that changes its input in place changes a copy.
        """
        reduced = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced):
            outputs = network(inputs.clone())
        return map_tensors(Tensor.float, outputs) if reduced else outputs


def _name_classes(targets: Any) -> bool:
    """Whether targets are numbers of classes: whole numbers."""
    return any(not x.is_floating_point() and not x.is_complex() for x in tensors_in(targets))


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
    inputs = batch[0]
    samples = all_reduce_sum(len(inputs), inputs.device)
    parts = min(parts, samples // world_size())  # as many on every process, none of them empty
    losses = []
    for piece in _pieces(batch, parts):
        value = objective(network, piece) * (len(piece[0]) / samples)
        if not value.requires_grad:
            raise UserError(
                "the loss does not depend on any parameter that requires a gradient: nothing can be trained"
            )
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.detach())
    return torch.stack(losses).sum()


@torch.no_grad()
def try_out(model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Computes the loss of one batch (inputs (N, ...), targets) and leaves buffers and random numbers as they were.

    Raises what `Objective` does.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = batch[0].device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            objective(model, batch)
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def _pieces(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch in micro-batches; all tensors of the targets are cut as the inputs are."""
    inputs, targets = batch
    ends = [0, *torch.tensor([len(piece) for piece in inputs.tensor_split(parts)]).cumsum(0).tolist()]
    for begin, end in pairwise(ends):
        yield inputs[begin:end], map_tensors(lambda x, part=slice(begin, end): x[part], targets)  # type: ignore[misc]


def gradient_length(model: nn.Module) -> Tensor:
    """‖∂L/∂θ‖₂ over all parameters together, a scalar."""
    return get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
