"""What an analysis measures, and on which images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.curvature import DistillationLoss, Loss
from hawq.records import BIT_WIDTHS
from hawq.records.scores import check_scores
from hawq.scoring.joint_training import JointTraining, check_training

TRAIN, TEST = "train", "test"
LOSSES = ("cross_entropy", "distillation")
_MOST_TEMPERATURE = 1000.0


@component(
    "analysis/analysis",
    not_in_key=(
        *("batch_size", "landscape", "save_every_seconds", "scores", "images", "kl_temperature", "loss", "temperature"),
        *("learned_steps_iterations", "learned_steps_lr", "learned_steps_batch_size"),
    ),
)
@dataclass(frozen=True)
class Analysis:
    """What is measured of each block, and on how much data.

    Args:
        num_samples: training samples, drawn once by the run's seed, that the loss is averaged over.
        batch_size: samples in one pass; with all samples in one batch no forward is repeated.
        activations: whether curvature by, errors and scores of the blocks' input activations are measured as well; None
            in a run: where bits.activations=mixed needs them.
        scores: measured for each block and bit-width, beside the curvature: some of kl, quadratic, output_shift,
            learned_steps. That of the allocation (bits.score) is measured in any case.
        images: that kl is measured on, at most `num_samples`: "train" (those of the loss), "test" (test images without
            their labels; validate then leaves them out), or a path of images without labels: a folder of image files,
            an .npy of uint8 (N, H, W, 3), or an .npz with such an array `images`.
        kl_temperature: T of kl, T² · KL of the outputs softened by T; 1 leaves them as they are. On images that the
            network has memorised, softened outputs still tell how much they shift.
        loss: that curvature, quadratic, output_shift and learned_steps are of: "cross_entropy", or "distillation" to
            the float network's own softened outputs, which needs no labels.
        temperature: T of the distillation loss.
        learned_steps_iterations, learned_steps_lr, learned_steps_batch_size: of the joint training that learned_steps
            reads its steps from, see `JointTraining`.
        detached_bits: bit-width of blocks that no gradient of the loss reaches (a backbone under no_grad, say); None
            refuses them.
        stop_when_settled: ends as soon as no curvature within its error can change a bit-width (bits=mixed).
        landscape: whether the loss is measured along the top eigenvector of the three blocks of largest curvature.
        save_every_seconds: how often a half-done analysis is stored, so that a killed run can resume.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int = 256
    batch_size: int = 256
    activations: bool | None = None
    scores: tuple[str, ...] = ()
    images: str = TRAIN
    kl_temperature: float = 2.0
    loss: str = "cross_entropy"
    temperature: float = 4.0
    learned_steps_iterations: int = 50
    learned_steps_lr: float = 0.01
    learned_steps_batch_size: int = 32
    detached_bits: int | None = None
    stop_when_settled: bool = False
    landscape: bool = False
    save_every_seconds: float = 20.0

    def __post_init__(self) -> None:
        check_range("num_samples", self.num_samples, least=1)
        check_range("batch_size", self.batch_size, least=1)
        check_scores("scores", self.scores)
        if not self.images.strip():
            raise ValueError(f"images is empty: give {TRAIN}, {TEST}, or a path of images")
        check_range("kl_temperature", self.kl_temperature, above=0, most=_MOST_TEMPERATURE)
        check_choice("loss", self.loss, LOSSES)
        check_range("temperature", self.temperature, above=0, most=_MOST_TEMPERATURE)
        check_training(*self._training(), prefix="learned_steps_")
        check_range("detached_bits", self.detached_bits, least=BIT_WIDTHS[0], most=BIT_WIDTHS[-1], optional=True)
        check_range("save_every_seconds", self.save_every_seconds, least=0)

    def loss_function(self) -> Loss:
        """The mean loss over a batch that curvature is taken of."""
        return DistillationLoss(self.temperature) if self.loss == "distillation" else nn.functional.cross_entropy

    def joint_training(self, seed: int) -> JointTraining:
        """How learned_steps is trained."""
        return JointTraining(*self._training(), seed)

    def _training(self) -> tuple[int, float, int]:
        return self.learned_steps_iterations, self.learned_steps_lr, self.learned_steps_batch_size

    def loss_facts(self) -> dict[str, object]:
        """What a result by this loss depends on; nothing for cross-entropy, whose results keep their keys."""
        return {"loss": self.loss, "temperature": self.temperature} if self.loss == "distillation" else {}
