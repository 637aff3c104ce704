"""How a network is trained: the same settings serve the float network and its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from hawq.finetuning.oscillation import OSCILLATIONS
from hawq.finetuning.schedule import Order


@dataclass(frozen=True)
class Training:
    """SGD with Nesterov momentum, on cross-entropy.

    Args:
        epochs: passes over the training data; 0 trains nothing (as fine-tuning: calibration only).
        max_steps: upper limit on the steps of all phases together, or None.
        batch_size: images a step.
        lr: learning rate at the start; the last phase lowers it to zero by a half cosine.
        momentum, weight_decay: of SGD; decay acts on weights only, not on biases, norms or step sizes.
        label_smoothing: of the cross-entropy.
        eval_samples: test images for the curve during training (the final figure uses all), None for all.
        evaluations: how many times the curve is measured, evenly spread, besides once at the end of every phase.
        checkpoint_every: steps between two checkpoints of a half-done training.

    Raises:
        ValueError: a value out of range.
    """

    epochs: float = 10.0
    max_steps: int | None = None
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    eval_samples: int | None = None
    evaluations: int = 10
    checkpoint_every: int = 50

    section = "training"

    def __post_init__(self) -> None:
        least = {"epochs": 0, "max_steps": 0, "batch_size": 1, "lr": 0, "weight_decay": 0}
        least |= {"eval_samples": 1, "evaluations": 0, "checkpoint_every": 1, "momentum": 0, "label_smoothing": 0}
        for key, bound in least.items():
            value = getattr(self, key)
            if value is not None and not bound <= value < inf:
                raise ValueError(f"{self.section}.{key}={value} is out of range: give a number from {bound} on")
        for key in ("momentum", "label_smoothing"):
            if getattr(self, key) >= 1:
                raise ValueError(f"{self.section}.{key}={getattr(self, key)} is out of range: give less than 1")

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps in all."""
        steps = ceil(self.epochs * steps_per_epoch)
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True)
class FineTuning(Training):
    """Training settings together with the order in which blocks become quantised.

    Args:
        calibration_batches: training batches that activation ranges are chosen from.
        order, final_fraction: see `Order`.
        distillation: weight of the float parent's outputs as targets, 0 to 1; 0 reads labels alone.
        temperature: of these targets.
        reestimate_batches: training batches that batch norm's statistics are measured anew from, once: in the end, or
            where they freeze; 0 for not at all.
        freeze_batch_norm: share of the last phase's steps, its last ones, in which these statistics stay as they are.
        oscillation: "watch" counts weights of at most 4 bits that go to and fro between two codes, "freeze" holds them
            as well, "ignore" does neither (see `Oscillations`).
        oscillation_threshold: frequency of the changes from which a weight is frozen.

    Raises:
        ValueError: a value out of range.
    """

    calibration_batches: int = 2
    order: str = "descending"
    final_fraction: float = 0.5
    distillation: float = 0.0
    temperature: float = 4.0
    reestimate_batches: int = 20
    freeze_batch_norm: float = 0.0
    oscillation: str = "watch"
    oscillation_threshold: float = 0.02

    section = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_batches < 1:
            given = f"{self.section}.calibration_batches={self.calibration_batches}"
            raise ValueError(f"{given} is out of range: give a number from 1 on")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"{self.section}.distillation={self.distillation} is out of range: give 0 to 1")
        if not 0 < self.temperature < inf:
            given = f"{self.section}.temperature={self.temperature}"
            raise ValueError(f"{given} is out of range: give a number above 0")
        if self.reestimate_batches < 0:
            given = f"{self.section}.reestimate_batches={self.reestimate_batches}"
            raise ValueError(f"{given} is out of range: give a number from 0 on")
        if not 0 <= self.freeze_batch_norm <= 1:
            raise ValueError(f"{self.section}.freeze_batch_norm={self.freeze_batch_norm} is out of range: give 0 to 1")
        if self.oscillation not in OSCILLATIONS:
            given = f"{self.section}.oscillation={self.oscillation!r}"
            raise ValueError(f"{given} is unknown: give {', '.join(OSCILLATIONS)}")
        if not 0 < self.oscillation_threshold < 1:
            given = f"{self.section}.oscillation_threshold={self.oscillation_threshold}"
            raise ValueError(f"{given} is out of range: give more than 0 and less than 1")
        self.block_order()

    def block_order(self) -> Order:
        return Order(self.order, self.final_fraction)
