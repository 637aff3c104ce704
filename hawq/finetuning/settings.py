"""How a network is trained: the same settings serve the float network and its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.errors import UserError
from hawq.finetuning.optimizer import check_optimizer
from hawq.finetuning.oscillation import OSCILLATIONS
from hawq.finetuning.schedule import SCHEDULES, Order

PRECISIONS = ("float32", "bfloat16")
KEPT = ("last", "best")
_MOST = 10**6  # epochs, images or evaluations beyond which a number is a typing error


@component("float_network/training", not_in_key=("checkpoint_every", "keep"))
@dataclass(frozen=True)
class Training:
    """An optimiser of timm and its schedule, on cross-entropy.

    Args:
        epochs: passes over the training data; 0 trains nothing (in fine-tuning: calibration only).
        max_steps: upper limit on the steps of all phases together, or None.
        batch_size: images per step.
        optimizer: its name in timm: sgd (Nesterov), adamw, ...
        lr: learning rate at the start; the last phase decays it to zero.
        momentum: of SGD and its relatives; adamw and others have none.
        weight_decay: applied to weights only, not to biases, norms or quantiser parameters.
        schedule: how the last phase decays the rate: "cosine", "linear", "step" (divided by ten after each third of
            the phase), "constant" (no decay).
        warmup_steps: first steps, over which the rate rises linearly from zero.
        label_smoothing: of the cross-entropy.
        ema_decay: decay of the exponential moving average of all weights, which is then evaluated and kept; None or 0
            for no average. The average restarts whenever blocks become quantised.
        clip_norm: largest 2-norm of the gradient, or None.
        accumulate: micro-batches that each step is split into, to save memory; batch norm sees one of them at a time.
        precision: "float32", or "bfloat16" for the forward pass (autocast).
        compile: torch.compile; checked at the start of each phase: same loss, gradient as long.
        eval_samples: test images for the curve during training (the final figure uses all), None for all.
        evaluations: how many times the curve is measured, evenly spread, besides the end of every phase.
        checkpoint_every: steps between two checkpoints of an unfinished training.
        keep: which network a run continues with: the "last" one, or the "best" of the curve, whose accuracy is then
            selected on the test images that the curve was measured on.

    Raises:
        ValueError: a value out of range.
    """

    epochs: float = 15.0
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
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

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, least=0, most=_MOST)
        check_range("max_steps", self.max_steps, least=0, optional=True)
        check_range("batch_size", self.batch_size, least=1, most=_MOST)
        check_range("lr", self.lr, least=0)
        check_range("momentum", self.momentum, least=0, below=1)
        check_range("weight_decay", self.weight_decay, least=0)
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        check_range("warmup_steps", self.warmup_steps, least=0)
        check_range("label_smoothing", self.label_smoothing, least=0, below=1)
        check_range("ema_decay", self.ema_decay, least=0, below=1, optional=True)
        check_range("clip_norm", self.clip_norm, above=0, optional=True)
        check_range("accumulate", self.accumulate, least=1)
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate={self.accumulate} is more than the {self.batch_size} images of a step: "
                "give at most batch_size"
            )
        check_choice("precision", self.precision, PRECISIONS)
        check_range("eval_samples", self.eval_samples, least=1, optional=True)
        check_range("evaluations", self.evaluations, least=0, most=_MOST)
        check_range("checkpoint_every", self.checkpoint_every, least=1)
        check_choice("keep", self.keep, KEPT)
        check_optimizer(self.optimizer)

    def warmup(self, step: int) -> float:
        """Factor on the learning rate at a step of the whole training: min((step + 1) / (warmup_steps + 1), 1)."""
        return min((step + 1) / (self.warmup_steps + 1), 1.0)

    def quantizer_rate(self) -> float:
        """Factor on the learning rate of what quantisers learn."""
        return 1.0

    def num_steps(self, steps_per_epoch: int | None) -> int:
        """Optimiser steps in total: ⌈epochs · steps_per_epoch⌉, at most `max_steps`.

        Data without a length (`steps_per_epoch` None) takes exactly `max_steps`; UserError is raised without it.
        """
        if steps_per_epoch is not None:
            steps = ceil(self.epochs * steps_per_epoch)
            return steps if self.max_steps is None else min(steps, self.max_steps)
        if self.max_steps is None:
            raise UserError("the training data has no length: give max_steps=..., the number of steps to train for")
        return self.max_steps if self.epochs else 0


@component("finetune/fine_tuning", not_in_key=("checkpoint_every", "keep"))
@dataclass(frozen=True)
class FineTuning(Training):
    """Training settings together with the order in which blocks become quantised.

    Args:
        calibration_batches: training batches that activation ranges are chosen from.
        quantizer_lr_scale: factor on `lr` for what quantisers learn (steps, ranges); 0 keeps what calibration chose.
        order, final_fraction, progressive_bits: see `Order`.
        distillation: weight of the float parent's outputs as targets, 0 to 1; 0 uses labels alone.
        temperature: softens these targets, above 0.
        reestimate_batches: training batches that batch norm's statistics are re-estimated from, once: at the end, or
            where they freeze; 0 for never.
        freeze_batch_norm: the last share of the last phase's steps, 0 to 1, in which these statistics stay fixed.
        oscillation: "watch" counts weights of at most 4 bits that oscillate between two codes, "freeze" also freezes
            them, "ignore" does neither (see `Oscillations`).
        oscillation_threshold: frequency of oscillation above which a weight is frozen.

    Raises:
        ValueError: a value out of range.
    """

    epochs: float = 1.0
    lr: float = 0.02
    weight_decay: float = 1e-4
    eval_samples: int | None = 2000
    calibration_batches: int = 2
    quantizer_lr_scale: float = 1.0
    order: str = "joint"
    final_fraction: float = 0.5
    progressive_bits: tuple[int, ...] = (8, 4)
    distillation: float = 0.5
    temperature: float = 4.0
    reestimate_batches: int = 20
    freeze_batch_norm: float = 0.0
    oscillation: str = "watch"
    oscillation_threshold: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("calibration_batches", self.calibration_batches, least=1, most=_MOST)
        check_range("quantizer_lr_scale", self.quantizer_lr_scale, least=0, most=_MOST)
        check_range("distillation", self.distillation, least=0, most=1)
        check_range("temperature", self.temperature, above=0)
        check_range("reestimate_batches", self.reestimate_batches, least=0, most=_MOST)
        check_range("freeze_batch_norm", self.freeze_batch_norm, least=0, most=1)
        check_choice("oscillation", self.oscillation, OSCILLATIONS)
        check_range("oscillation_threshold", self.oscillation_threshold, above=0, below=1)
        self.block_order()

    def quantizer_rate(self) -> float:
        """Factor on the learning rate of what quantisers learn."""
        return self.quantizer_lr_scale

    def block_order(self) -> Order:
        """`order`, `final_fraction` and `progressive_bits` as an `Order`."""
        return Order(self.order, self.final_fraction, self.progressive_bits)
