"""Algorithm 2 of HAWQ: quantise and fine-tune block after block, the most sensitive one first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn

from hawq.distributed import broadcast_parameters
from hawq.finetuning.data import RepeatedLoader, TrainingData
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.folding import folded
from hawq.finetuning.loop import fit
from hawq.finetuning.oscillation import Oscillations
from hawq.finetuning.run import Row
from hawq.finetuning.schedule import Order, make_phases
from hawq.finetuning.settings import FineTuning
from hawq.progress import SILENT, Progress, Task
from hawq.quantization import (
    LSQ,
    Quantizer,
    attach,
    enable,
    freeze_batch_norm,
    input_batches,
    reestimate_batch_norm,
)
from hawq.records import BitPlan, Block, Phase, Sensitivity
from hawq.resuming import Checkpoint

_COMPARED = 4  # images that the teacher and its folded form are compared on


def finetune(
    model: nn.Module,
    sensitivity: Sensitivity,
    plan: BitPlan,
    data: TrainingData | Any,
    calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    settings: FineTuning | None = None,
    *,
    quantizer: Quantizer | None = None,
    seed: int = 0,
    loss: Callable[[Any, Any], Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: Checkpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_best: Callable[[dict[str, Any]], None] = lambda state: None,
    start: nn.Module | None = None,
    teacher: nn.Module | None = None,
    progress: Progress = SILENT,
    title: str = "fine-tuning",
) -> tuple[nn.Module, list[Row]]:
    """A quantised, fine-tuned copy of `model`, and its history (one row per step; see `fit`).

    Blocks enter by Ω_i = λ_i ‖Q(W_i) − W_i‖²₂, largest first (Algorithm 2 of 1905.03696); blocks that have entered
    stay quantised while all weights continue to train. Batch norm's statistics are re-estimated where they freeze, else
    (and for averaged weights) at the end; not where nothing was trained.

    Args:
        model: the float network, left unchanged; with `settings.distillation` also the teacher.
        sensitivity, plan: from `analyze` and `allocate`.
        data: training batches of (inputs (N, ...), targets); a DataLoader will do.
        calibration: what activation ranges are chosen from when a block enters; see `quantize`.
        settings, quantizer: `FineTuning()`, which is what train.py does by default, and LSQ unless given.
        seed: of a random order, and of the randomness inside the network.
        loss: mean loss of (outputs, targets); cross-entropy unless given. With distillation it is the hard part.
        start: a quantised copy of `model` by this plan, left unchanged; all blocks are quantised from the first step.
        teacher: a network, an `Ensemble` say, that teaches in place of `model`; its outputs have the same shape.
        evaluate, checkpoint, on_row, on_best, progress, title: see `fit`.

    Raises ValueError: the plan is for another model, or the loss is not finite.
    """
    settings = settings or FineTuning()
    inputs = input_batches(calibration, device := next(model.parameters()).device)
    data = data if isinstance(data, TrainingData) else RepeatedLoader(data, device)
    quantized = attach(model, sensitivity.blocks, plan, quantizer or LSQ()) if start is None else copy.deepcopy(start)
    steps = settings.num_steps(data.steps_per_epoch)
    order = settings.block_order() if start is None else Order("joint")
    phases = make_phases(sensitivity, plan, order, steps, settings.lr, seed)
    frozen_from = steps - round(phases[-1].steps * settings.freeze_batch_norm)
    norms = _BatchNorms(data, settings, steps, frozen_from, progress)
    told: dict[str, Any] = {"evaluate": evaluate, "checkpoint": checkpoint, "on_row": on_row, "on_best": on_best}
    told |= {"begin_step": norms.begin_step, "progress": progress, "title": title}
    told |= {"seed": seed, "loss": loss, "distillation": _taught_by(teacher or model, settings, inputs[0][:_COMPARED])}

    def enter(network: nn.Module, phase: Phase) -> None:
        entering = phase.enters if start is None else ()
        enable(network, entering, inputs, least_bits=phase.least_bits, progress=progress)

    history = fit(quantized, phases, data, settings, enter=enter, watch=_watch(sensitivity.blocks, settings), **told)
    norms.finish(quantized)
    return quantized, history


def _taught_by(teacher: nn.Module, settings: FineTuning, inputs: Tensor) -> Distillation | None:
    if not settings.distillation:
        return None
    return Distillation(folded(teacher, inputs), settings.distillation, settings.temperature)


def _watch(blocks: tuple[Block, ...], settings: FineTuning) -> Oscillations | None:
    threshold = settings.oscillation_threshold if settings.oscillation == "freeze" else None
    return None if settings.oscillation == "ignore" else Oscillations(blocks, threshold)


@dataclass(frozen=True)
class _BatchNorms:
    """When the statistics of batch norm are re-estimated and frozen in a training of `steps` steps."""

    data: TrainingData
    settings: FineTuning
    steps: int
    frozen_from: int
    progress: Progress

    def begin_step(self, network: nn.Module, step: int) -> None:
        """Before each step, `step` of which are done."""
        if step == self.frozen_from:
            self._reestimate(network)
        if step >= self.frozen_from:
            freeze_batch_norm(network)

    def finish(self, network: nn.Module) -> None:
        """After the last step; without any, the statistics stay as calibration left them."""
        if not self.steps:
            return
        if self.frozen_from == self.steps or self.settings.ema_decay:  # averaged weights are another network
            self._reestimate(network)

    def _reestimate(self, network: nn.Module) -> None:
        if self.settings.reestimate_batches:
            count = self.settings.reestimate_batches
            with self.progress.task("statistics of batch norm", count) as task:
                batches = islice(self.data.batches(0), count)
                reestimate_batch_norm(network, _inputs(batches, task))
            broadcast_parameters(network)


def _inputs(batches: Iterable[tuple[Tensor, Any]], task: Task) -> Iterator[Tensor]:
    """The inputs of each batch; `task` is advanced by one for each."""
    for inputs, _ in batches:
        yield inputs
        task.advance()
