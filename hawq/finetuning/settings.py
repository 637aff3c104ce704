"""How a network is trained: the same settings serve the float network and its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from torch import nn

from hawq.components import component
from hawq.finetuning.optimizer import make_optimizer
from hawq.finetuning.oscillation import OSCILLATIONS
from hawq.finetuning.schedule import SCHEDULES, Order

PRECISIONS = ("float32", "bfloat16")
KEPT = ("last", "best")


@component("float_network/training", not_in_key=("checkpoint_every", "keep"))
@dataclass(frozen=True)
class Training:
    """An optimiser of timm and its schedule, on cross-entropy.

    Args:
        epochs: passes over the training data; 0 trains nothing (as fine-tuning: calibration only).
        max_steps: upper limit on the steps of all phases together, or None.
        batch_size: images a step.
        optimizer: timm's name of it: sgd (Nesterov), adamw, ...
        lr: learning rate at the start; the last phase lowers it to zero.
        momentum: of SGD and its relatives; adamw and others have none.
        weight_decay: acts on weights only, not on biases, norms or what quantisers learn.
        schedule: how the last phase lowers the rate: "cosine", "linear", "step" (a tenth after each third of it),
            "constant" (not at all).
        warmup_steps: first steps, over which the rate rises from zero.
        label_smoothing: of the cross-entropy.
        ema_decay: share of the old in the running average of all weights, which then is what is measured and kept;
            None or 0 for none. It begins anew where blocks become quantised.
        clip_norm: greatest length of the gradient, or None.
        accumulate: pieces that the images of a step are worked through in, to save memory; batch norm sees a piece.
        precision: "float32", or "bfloat16" for the forward pass (autocast).
        compile: torch.compile; checked at the start of each phase to give the same loss.
        eval_samples: test images for the curve during training (the final figure uses all), None for all.
        evaluations: how many times the curve is measured, evenly spread, besides once at the end of every phase.
        checkpoint_every: steps between two checkpoints of a half-done training.
        keep: which network a run goes on with: the "last" one, or the "best" of the curve, whose accuracy is then
            selected on the test images that the curve was measured on.

    Raises:
        ValueError: a value out of range.
    """

    epochs: float = 10.0
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    eval_samples: int | None = None
    evaluations: int = 10
    checkpoint_every: int = 50
    keep: str = "last"

    section = "training"

    def __post_init__(self) -> None:
        least = {"epochs": 0, "max_steps": 0, "batch_size": 1, "lr": 0, "weight_decay": 0}
        least |= {"eval_samples": 1, "evaluations": 0, "checkpoint_every": 1, "momentum": 0, "label_smoothing": 0}
        least |= {"warmup_steps": 0, "ema_decay": 0, "accumulate": 1}
        for key, bound in least.items():
            value = getattr(self, key)
            if value is not None and not bound <= value < inf:
                raise ValueError(f"{self.section}.{key}={value} is out of range: give a number from {bound} on")
        for key in ("momentum", "label_smoothing", "ema_decay"):
            if (getattr(self, key) or 0) >= 1:
                raise ValueError(f"{self.section}.{key}={getattr(self, key)} is out of range: give less than 1")
        if self.clip_norm is not None and not 0 < self.clip_norm < inf:
            given = f"{self.section}.clip_norm={self.clip_norm}"
            raise ValueError(f"{given} is out of range: give a number above 0, or null")
        if self.accumulate > self.batch_size:
            given = f"{self.section}.accumulate={self.accumulate}"
            raise ValueError(f"{given} is more than the {self.batch_size} images of a step: give at most batch_size")
        for key, known in {"precision": PRECISIONS, "schedule": SCHEDULES, "keep": KEPT}.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{self.section}.{key}={getattr(self, key)!r} is unknown: give {', '.join(known)}")
        try:
            make_optimizer(nn.Linear(1, 1), self.optimizer, self.lr, self.momentum, self.weight_decay)
        except ValueError as error:
            raise ValueError(f"{self.section}.{error}") from error

    def warmup(self, step: int) -> float:
        """What the rate is multiplied with at a step of the whole training."""
        return min((step + 1) / (self.warmup_steps + 1), 1.0)

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps in all."""
        steps = ceil(self.epochs * steps_per_epoch)
        return steps if self.max_steps is None else min(steps, self.max_steps)


@component("finetune/fine_tuning", not_in_key=("checkpoint_every", "keep"))
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
