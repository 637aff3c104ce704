"""Settings of the reconstruction methods."""

from __future__ import annotations

from dataclasses import dataclass, field

from hawq.checks import check_choice, check_range
from hawq.components import component

UNITS = ("layer", "block")
BATCH_NORMS = ("carried", "folded")
LOSSES = ("auto", "kl", "squared")
_MOST = 10**6
_TRAVEL, _MOST_LR = 10.0, 0.1  # how far steps of one sign could take a rounding variable
_LEAST_GIB = 2.0**-20


@component("reconstruction/none")
@dataclass(frozen=True)
class NoReconstruction:
    """Weights stay rounded to nearest, activation ranges as calibrated."""


@component("reconstruction/auto")
@dataclass(frozen=True)
class AutoReconstruction(NoReconstruction):
    """Stands for `Descent()` where nothing is trained, else for `NoReconstruction()`: a run puts that in its place."""


@dataclass(frozen=True)
class Reconstruction:
    """What all methods have in common; without training labels, from a few hundred images.

    Args:
        iterations: optimiser steps of each unit.
        num_samples: images that units are reconstructed on.
        batch_size: images per step.
        lr: Adam's learning rate of the rounding variables, whose range is about 5 wide. None: 10 / `iterations`, at
            most 0.1, with which each can cross it twice.
        regularization: weight λ of the term that drives roundings to 0 or 1, relative to the error of rounding to
            nearest.
        warmup: share of the steps, 0 to 1, before this term sets in.
        units: what is reconstructed at a time: each "layer" or each "block".
        fisher_draws: random vectors per image that the curvature of the loss by a unit's outputs is estimated from;
            0 weighs all outputs alike.
        step_lr: Adam's learning rate of the steps of activation quantisers, falling to 0 along a cosine; 0 keeps
            the calibrated steps. Quantisers without a trained parameter (uniform, rvquant) keep theirs anyway.
        drop: probability, 0 to 1, with which each activation stays float during reconstruction.
        batch_norm: "carried" adapts batch norm's statistics to what quantisation changes, before the units are
            reconstructed and again at the end; "folded" leaves those of the float network, as if batch norm were part
            of the weights.
        bias_correction: shift biases so that the mean output of each layer is the float one's.
        memory_limit_gib: for the stored inputs and outputs of a unit; float16 and then fewer images are used beyond it.
            As much again is used at most for what precedes the unit, which is computed again beyond it.

    Raises:
        ValueError: a value out of range.
    """

    iterations: int = 1000
    num_samples: int = 512
    batch_size: int = 32
    lr: float | None = None
    regularization: float = 10.0
    warmup: float = 0.2
    units: str = "layer"
    fisher_draws: int = 0
    step_lr: float = 0.0
    drop: float = 0.0
    batch_norm: str = "carried"
    bias_correction: bool = False
    memory_limit_gib: float = 2.0

    def __post_init__(self) -> None:
        check_range("iterations", self.iterations, least=0, most=_MOST)
        check_range("num_samples", self.num_samples, least=2, most=_MOST)
        check_range("batch_size", self.batch_size, least=1, most=_MOST)
        check_range("lr", self.lr, least=0, most=1, optional=True)
        check_range("regularization", self.regularization, least=0, most=_MOST)
        check_range("warmup", self.warmup, least=0, most=1)
        check_choice("units", self.units, UNITS)
        check_range("fisher_draws", self.fisher_draws, least=0, most=1000)
        check_range("step_lr", self.step_lr, least=0, most=1)
        check_range("drop", self.drop, least=0, most=1)
        check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        check_range("memory_limit_gib", self.memory_limit_gib, least=_LEAST_GIB, most=_MOST)

    def rounding_lr(self) -> float:
        """The learning rate of the rounding variables."""
        return min(_TRAVEL / max(self.iterations, 1), _MOST_LR) if self.lr is None else self.lr


@component("reconstruction/descent")
@dataclass(frozen=True)
class Descent(Reconstruction):
    """AdaRound's problem as the quadratic one that it is for a layer (2004.10568), solved by coordinate descent alone.

    Layer by layer, without an optimiser: a minute instead of an hour. Layers whose error is no quadratic function of
    their weight stay rounded to nearest.
    """

    iterations: int = field(default=0, init=False)
    num_samples: int = 256
    lr: float | None = field(default=None, init=False)
    regularization: float = field(default=0.0, init=False)
    warmup: float = field(default=0.0, init=False)
    units: str = field(default="layer", init=False)
    fisher_draws: int = field(default=0, init=False)
    step_lr: float = field(default=0.0, init=False)
    drop: float = field(default=0.0, init=False)


@component("reconstruction/adaround")
@dataclass(frozen=True)
class AdaRound(Reconstruction):
    """Rounds the weights of each layer up or down so that its outputs stay (Nagel et al., 2004.10568)."""


@component("reconstruction/brecq")
@dataclass(frozen=True)
class BRECQ(Reconstruction):
    """Block by block, outputs weighted by the diagonal of the Fisher matrix (Li et al., 2102.05426)."""

    units: str = "block"
    fisher_draws: int = 2
    step_lr: float = 4e-5


@component("reconstruction/qdrop")
@dataclass(frozen=True)
class QDrop(Reconstruction):
    """Block by block, each activation left float with probability ½ meanwhile (Wei et al., 2203.05740)."""

    units: str = "block"
    step_lr: float = 4e-5
    drop: float = 0.5


@component("tuning/tuning")
@dataclass(frozen=True)
class Tuning:
    """Training of what lies around the codes by the float network's outputs (EfficientQAT, 2407.11062, §3.3).

    Args:
        epochs: passes over the images; 0: no tuning.
        num_samples: images; all where there are fewer.
        batch_size: images per step.
        lr: Adam's learning rate, relative to the size of each parameter, falling to 0 along a cosine.
        loss: "kl" to the float outputs, or their "squared" error, as always where they are no scores of classes;
            "auto": kl, unless the float network is too sure of the images, as of many that it was trained on.
        temperature: T of the KL, T²·KL(softmax(z/T) ‖ softmax(z'/T)).

    Raises:
        ValueError: a value out of range, or a temperature for the squared error.
    """

    epochs: int = 0
    num_samples: int = 1024
    batch_size: int = 32
    lr: float = 1e-3
    loss: str = "auto"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, least=0, most=_MOST)
        check_range("num_samples", self.num_samples, least=2, most=_MOST)
        check_range("batch_size", self.batch_size, least=1, most=_MOST)
        check_range("lr", self.lr, least=0, most=1)
        check_choice("loss", self.loss, LOSSES)
        check_range("temperature", self.temperature, above=0, most=1000)
        if self.loss == "squared" and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature} has no effect with loss=squared: give loss=kl, or no temperature"
            )
