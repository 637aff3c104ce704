"""Distillation: the quantised network also learns from the outputs of its float parent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hawq.modes import eval_mode


@dataclass(frozen=True)
class Distillation:
    """loss = (1 − α)·hard + α·T²·KL(softmax(t/T) ‖ softmax(s/T)), t the teacher's outputs, s the student's.

    Hinton et al., 1503.02531, §2; T² keeps the size of the gradient independent of T. LSQ (1902.08153) distils from
    the float parent with α = ½.

    Args:
        teacher: the float network; run in eval mode without gradients and never changed.
        weight: α, 0 to 1.
        temperature: T, above 0.
    """

    teacher: nn.Module
    weight: float
    temperature: float

    def teach(self, inputs: Tensor) -> Tensor:
        """The teacher's outputs (N, K, ...) for a batch of inputs (N, ...)."""
        with eval_mode(self.teacher), torch.no_grad():
            outputs: Tensor = self.teacher(inputs)
        return outputs

    def mix(self, hard: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss above, a scalar, of the hard loss, the student's outputs (N, K, ...), and the teacher's."""
        return (1 - self.weight) * hard + self.weight * soft_loss(outputs, targets, self.temperature)


def soft_loss(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(targets/T) ‖ softmax(outputs/T)) over axis 1 of (N, K, ...), averaged over all other axes."""
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (outputs, targets))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True)  # (N, K, ...)
    return temperature**2 * divergence.sum(1).mean()
