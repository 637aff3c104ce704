"""The distillation loss to the float network itself, whose Hessian there is the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.checks import check_range
from hawq.curvature.samples import Batch
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.structures import main_output

_MOST = 1000.0


@dataclass(frozen=True)
class DistillationLoss:
    """T² · KL(softmax(t/T) ‖ softmax(z/T)), mean over a batch, of outputs z and the float network's outputs t.

    At the float network it is zero, and so is its gradient; its Hessian is the Gauss-Newton matrix with the curvature
    diag(p) − ppᵀ of the softened probabilities p (Hinton et al., 1503.02531). It needs no labels, and samples that the
    network has memorised still count.

    Args:
        temperature: T, above 0; the larger, the more the small probabilities count.

    Raises:
        ValueError: a temperature out of range.
    """

    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, above=0, most=_MOST)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss; both (N, classes, ...)."""
        expected, found = (nn.functional.log_softmax(z / self.temperature, dim=1) for z in (targets, outputs))
        each = (expected.exp() * (expected - found)).sum(1)
        return self.temperature**2 * each.mean()

    def batches(self, model: nn.Module, inputs: Sequence[Tensor]) -> list[Batch]:
        """The inputs (N, ...) with the network's own outputs as targets.

        Raises UserError for outputs without several classes.
        """
        made = []
        for batch in inputs:
            with analysis_mode(model, []), torch.no_grad():
                outputs = model(batch)
            if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
                form = tuple(outputs.shape) if isinstance(outputs, Tensor) else tuple(main_output(outputs).shape)
                raise UserError(
                    f"the network's outputs have the form {form}: loss=distillation needs one tensor (N, classes, ...) "
                    "with at least two classes; give loss=cross_entropy"
                )
            made.append((batch, outputs.clone()))
        return made
