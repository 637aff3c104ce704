"""What plans are judged on while a search measures them."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.checks import check_choice, check_range
from hawq.components import component

TRAIN, HELD_OUT = "train", "held_out"
JUDGES = {
    "kl": "KL to the float outputs",
    "loss": "cross-entropy",
    "errors": "share of wrong answers",
}
"""What a plan may be judged by → how it is called."""

_MOST = 10**6


@component("search/search", not_in_key=("save_every_seconds",))
@dataclass(frozen=True)
class Search:
    """What plans are judged on while a search measures them (bits.refine, bits=haq, bits=optuna, bits=random_search).

    The KL is softened, at T = 4 by default. A network answers images that it was trained on too confidently: plans
    chosen on them by their plain KL are worse on unseen images. And of unseen images a few make up most of the plain
    KL, so that 400 of them show a true difference three times less often (docs/LOG.md).

    Args:
        images: "train", training images; "held_out", training images that this run keeps from training, analysis and
            fine-tuning alike; or a path of images that the network has not seen: a folder of image files, an .npy of
            uint8 (N, H, W, 3), or an .npz with such an array `images`. A path's images need no labels.
        num_images: that plans are judged on, drawn once by the run's seed; at most those that are there.
        judge: "kl" to the float outputs, "loss" (cross-entropy) or "errors" (wrong answers).
        temperature: T of the softened KL, T² · KL(softmax(z/T) ‖ softmax(z'/T)).
        standard_errors: of the paired differences, that the gain of a swap must exceed in a refinement; by a softened
            KL, the plain one must not rise either.
        steps: of joint training before a plan is judged, 0 for calibration alone.
        calibration_images: training images that ranges and batch norm's statistics are taken from.
        other_images: test images on which the result is measured again, 0 for none. They decide nothing.
        batch_size: images in one forward pass; a plan that is worse for sure after a batch is not measured on the rest.
        save_every_seconds: how often measured plans are stored, so that a killed search can resume.

    Raises:
        ValueError: a value out of range.
    """

    images: str = TRAIN
    num_images: int = 400
    judge: str = "kl"
    temperature: float = 4.0
    standard_errors: float = 2.0
    steps: int = 0
    calibration_images: int = 128
    other_images: int = 1000
    batch_size: int = 100
    save_every_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not self.images.strip():
            raise ValueError(f"images is empty: give {TRAIN}, {HELD_OUT} or a path")
        check_range("num_images", self.num_images, least=2, most=_MOST)
        check_choice("judge", self.judge, tuple(JUDGES))
        check_range("temperature", self.temperature, above=0, most=1000)
        check_range("standard_errors", self.standard_errors, least=0, most=100)
        check_range("steps", self.steps, least=0, most=_MOST)
        check_range("calibration_images", self.calibration_images, least=1, most=_MOST)
        check_range("other_images", self.other_images, least=0, most=_MOST)
        if self.other_images == 1:
            raise ValueError("other_images=1 is out of range: give 2 or more, or 0 for none")
        check_range("batch_size", self.batch_size, least=1, most=_MOST)
        check_range("save_every_seconds", self.save_every_seconds, least=0)

    def about(self, images: int) -> str:
        """What is measured on how many images, in words."""
        kind = {TRAIN: "training", HELD_OUT: "held-out training"}.get(self.images, "unseen")
        after = f" after {self.steps} steps of training" if self.steps else ""
        soft = f", softened at T = {self.temperature:g}" if self.judge == "kl" and self.temperature != 1 else ""
        return f"{JUDGES[self.judge]} on {images} {kind} images{soft}{after}"
