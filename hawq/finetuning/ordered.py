"""Algorithm 2 of HAWQ: quantise and fine-tune block after block, the most sensitive one first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn

from hawq.distributed import broadcast_parameters
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.loop import RepeatedLoader, Row, TrainingCheckpoint, TrainingData, fit
from hawq.finetuning.oscillation import Oscillations
from hawq.finetuning.schedule import make_phases
from hawq.finetuning.settings import FineTuning
from hawq.progress import SILENT, Progress
from hawq.quantization import LSQ, Quantizer, attach, enable, freeze_batch_norm, reestimate_batch_norm
from hawq.records import BitPlan, Phase, Sensitivity


def finetune(
    model: nn.Module,
    sensitivity: Sensitivity,
    plan: BitPlan,
    data: TrainingData | Any,
    calibration: Sequence[Tensor],
    settings: FineTuning | None = None,
    *,
    quantizer: Quantizer | None = None,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: TrainingCheckpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_best: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: Progress = SILENT,
    title: str = "fine-tuning",
) -> tuple[nn.Module, list[Row]]:
    """A quantised, fine-tuned copy of `model`, and its history (one row a step; see `fit`).

    Blocks enter by Ω_i = λ_i ‖Q(W_i) − W_i‖²₂, largest first (Algorithm 2 of 1905.03696); blocks that have entered
    stay quantised while all weights go on learning. The statistics of batch norm are measured anew where they
    freeze, else (and for averaged weights) in the end.

    Args:
        model: the float network, left as it is; with `settings.distillation` also the teacher.
        sensitivity, plan: from `analyze` and `allocate`.
        data: training batches; a DataLoader will do.
        calibration: input batches (N, ...) that activation ranges are chosen from when a block enters.
        settings: `FineTuning()` unless given.
        quantizer: LSQ unless given.
        loss: mean loss of (outputs, targets); cross-entropy unless given. With distillation it is the hard part.
        evaluate: accuracy in percent of a network, for the history.
        checkpoint: where a half-done run is stored and found.
        on_row: hears every row of the history as it is made.
        progress: hears of every step, under `title`.
        on_best: hears at the end the state of the most accurate network that `evaluate` has seen fully quantised.

    Raises:
        ValueError: the plan is for another model, or the loss stops being finite.
    """
    settings = settings or FineTuning()
    if not isinstance(data, TrainingData):
        data = RepeatedLoader(data, next(model.parameters()).device)
    quantized = attach(model, sensitivity.blocks, plan, quantizer or LSQ())
    steps = settings.num_steps(data.steps_per_epoch)
    phases = make_phases(sensitivity, plan, settings.block_order(), steps, settings.lr, seed)

    teaching = Distillation(model, settings.distillation, settings.temperature) if settings.distillation else None

    def enter(network: nn.Module, phase: Phase) -> None:
        enable(network, phase.enters, calibration)

    frozen_from = steps - round(phases[-1].steps * settings.freeze_batch_norm)

    def measure_batch_norm(network: nn.Module) -> None:
        if settings.reestimate_batches:
            batches = islice(data.batches(0), settings.reestimate_batches)
            reestimate_batch_norm(network, (inputs for inputs, _ in batches))
            broadcast_parameters(network)

    def begin_step(network: nn.Module, step: int) -> None:
        if step == frozen_from:
            measure_batch_norm(network)
        if step >= frozen_from:
            freeze_batch_norm(network)

    threshold = settings.oscillation_threshold if settings.oscillation == "freeze" else None
    history = fit(
        quantized,
        phases,
        data,
        settings,
        seed=seed,
        loss=loss,
        distillation=teaching,
        enter=enter,
        begin_step=begin_step,
        watch=None if settings.oscillation == "ignore" else Oscillations(sensitivity.blocks, threshold),
        evaluate=evaluate,
        checkpoint=checkpoint,
        on_row=on_row,
        on_best=on_best,
        progress=progress,
        title=title,
    )
    if frozen_from == steps or settings.ema_decay:  # averaged weights are another network
        measure_batch_norm(quantized)
    return quantized, history
