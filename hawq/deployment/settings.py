"""Settings of the stage `deploy`."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.checks import check_choice, check_range
from hawq.components import component

PROFILES = ("exact", "integer")


@component("deploy/none")
@dataclass(frozen=True)
class NoDeployment:
    """Writes nothing."""


@component("deploy/onnx", not_in_key=("timed_batches",))
@dataclass(frozen=True)
class OnnxDeployment:
    """Writes `model.onnx` and `deploy.json`, checked with every runtime that is installed.

    Args:
        profile: "exact" (additions in float) or "integer" (8-bit additions, concatenations and poolings).
        opset: of the ONNX operators, 21 to 23.
        calibration_images: training images that the ranges of 8-bit additions come from.
        eval_images: test images that accuracy is compared on, null for all.
        timed_batches: batch sizes at which the file races the float network.

    Raises:
        ValueError: a value out of range.
    """

    profile: str = "exact"
    opset: int = 21
    calibration_images: int = 512
    eval_images: int | None = None
    timed_batches: tuple[int, ...] = (1, 64)

    def __post_init__(self) -> None:
        check_choice("profile", self.profile, PROFILES)
        check_range("opset", self.opset, least=21, most=23)
        check_range("calibration_images", self.calibration_images, least=1, most=100_000)
        check_range("eval_images", self.eval_images, least=1, most=10_000_000, optional=True)
        for batch in self.timed_batches:
            check_range("timed_batches", batch, least=1, most=4096)


@component("deploy/dyadic")
@dataclass(frozen=True)
class DyadicReport:
    """Runs the network in integers only (HAWQ-V3) and writes `dyadic.json`: accuracy, and bits of the accumulators.

    Args:
        eval_images: test images that it is run on, null for all; it is slow.
        calibration_images: training images that the ranges of 8-bit additions come from.
        multiplier_bits: of the numerators b of b/2^c.

    Raises:
        ValueError: a value out of range.
    """

    eval_images: int | None = 256
    calibration_images: int = 512
    multiplier_bits: int = 15

    def __post_init__(self) -> None:
        check_range("eval_images", self.eval_images, least=1, most=10_000_000, optional=True)
        check_range("calibration_images", self.calibration_images, least=1, most=100_000)
        check_range("multiplier_bits", self.multiplier_bits, least=4, most=31)
