"""Distillation: the quantised network also learns from the outputs of its float parent, or of other networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hawq.errors import UserError
from hawq.modes import eval_mode
from hawq.structures import main_output, scores_classes


@dataclass(frozen=True)
class Distillation:
    """loss = (1 − α)·hard + α·T²·KL(softmax(t/T) ‖ softmax(s/T)), t the teacher's outputs, s the student's.

    Hinton et al., 1503.02531, §2; T² keeps the size of the gradient independent of T. LSQ (1902.08153) distils from
    the float parent with α = ½.

    Args:
        teacher: the float network, or another; run in eval mode without gradients and never changed.
        weight: α, 0 to 1.
        temperature: T, above 0.
        network: what is called for the teacher's outputs, its compiled form say; the teacher itself unless given.
    """

    teacher: nn.Module
    weight: float
    temperature: float
    network: Callable[[Tensor], Any] | None = None

    def teach(self, inputs: Tensor) -> Any:
        """The teacher's outputs, (N, K, ...) or a structure that begins with them, for a batch of inputs (N, ...)."""
        with eval_mode(self.teacher), torch.no_grad():
            return (self.teacher if self.network is None else self.network)(inputs)

    def mix(self, hard: Tensor, outputs: Any, taught: Any, *, classes: bool = True) -> Tensor:
        """The loss above, a scalar, on the main outputs (the first of a tuple or mapping) of both networks.

        Args:
            hard: the loss by the targets.
            outputs: of the student, (N, K, ...) or a structure that begins with them.
            taught: the teacher's.
            classes: whether axis 1 has scores of K > 1 classes. Other outputs, of a regression say, are matched by
                their mean squared difference instead of KL, which would make no sense of them.

        Raises:
            UserError: the two main outputs have different shapes.
        """
        own, other = main_output(outputs), main_output(taught)
        if own.shape != other.shape:
            raise UserError(
                f"distillation={self.weight} cannot compare outputs of shape {tuple(own.shape)} in training with the "
                f"teacher's of shape {tuple(other.shape)}: give distillation=0"
            )
        scored = scores_classes(own, classes)
        soft = soft_loss(own, other, self.temperature) if scored else F.mse_loss(own, other)
        return (1 - self.weight) * hard + self.weight * soft


def soft_loss(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(targets/T) ‖ softmax(outputs/T)) over axis 1 of (N, K, ...), averaged over all other axes."""
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (outputs, targets))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True)  # (N, K, ...)
    return temperature**2 * divergence.sum(1).mean()
