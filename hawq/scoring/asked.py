"""One measured score by its name, with everything it may need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hawq.curvature import Batch, DistillationLoss, Loss
from hawq.errors import UserError
from hawq.quantization import Quantizer
from hawq.records import Block, ScoreTable
from hawq.scoring.joint_training import JointTraining
from hawq.scoring.kl import SOFTENED, kl_score
from hawq.scoring.learned_steps import learned_steps_score
from hawq.scoring.output_shift import output_shift_score
from hawq.scoring.quadratic import quadratic_score
from hawq.scoring.work import Conditions


def measure_score(
    score: str,
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    images: Sequence[Tensor],
    calibration: Sequence[Tensor],
    quantizer: Quantizer,
    *,
    curvature: str = "hessian",
    activations: bool = False,
    kl_temperature: float = SOFTENED,
    training: JointTraining | None = None,
    conditions: Conditions | None = None,
) -> ScoreTable:
    """The table of one of `hawq.records.BEYOND_CURVATURE`.

    Args:
        score: its name.
        model, blocks, quantizer, activations, conditions: see `kl_score`.
        batches, loss: of quadratic, output_shift and learned_steps.
        images, kl_temperature: of kl.
        calibration: of kl and learned_steps; output_shift takes ranges of activations from it.
        curvature: of quadratic.
        training: of learned_steps.

    Raises:
        ValueError: as the score does.
    """
    kept: dict[str, Any] = {"activations": activations, "conditions": conditions}
    if score == "kl":
        return kl_score(model, blocks, images, calibration, quantizer, temperature=kl_temperature, **kept)
    if score == "quadratic":
        return quadratic_score(model, blocks, batches, loss, quantizer, curvature=curvature, conditions=conditions)
    if score == "learned_steps":
        return learned_steps_score(model, blocks, batches, loss, calibration, quantizer, training=training, **kept)
    assert score == "output_shift", score
    if isinstance(loss, DistillationLoss):
        raise UserError(
            "the distillation loss has no gradient at the float network, by which output_shift weighs: "
            "give loss=cross_entropy, or another score"
        )
    return output_shift_score(model, blocks, batches, loss, calibration, quantizer, **kept)
