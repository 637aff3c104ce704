"""The training loop: phases in, a trained network out, able to stop and continue at any step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hawq.distributed import broadcast, broadcast_parameters, rank, world_size
from hawq.errors import UserError
from hawq.finetuning.compiling import compiled, with_compiled_teacher
from hawq.finetuning.data import TrainingData
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.divergence import Diverged
from hawq.finetuning.parallel import whole_batch_norm
from hawq.finetuning.run import Row, StepWatch, TrainingRun
from hawq.finetuning.schedule import learning_rate
from hawq.finetuning.settings import Training
from hawq.finetuning.step import Batch, CrossEntropy, Objective, try_out
from hawq.progress import SILENT, Progress
from hawq.records import Phase
from hawq.resuming import Checkpoint


def fit(
    model: nn.Module,
    phases: Sequence[Phase],
    data: TrainingData,
    settings: Training,
    *,
    seed: int,
    loss: Callable[[Any, Any], Tensor] | None = None,
    distillation: Distillation | None = None,
    enter: Callable[[nn.Module, Phase], None] = lambda model, phase: None,
    begin_step: Callable[[nn.Module, int], None] = lambda model, step: None,
    watch: StepWatch | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: Checkpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_best: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: Progress = SILENT,
    title: str = "training",
) -> list[Row]:
    """Trains `model` in place through all phases; returns one row per step: step, phase, loss, lr, at times accuracy.

    In a process group all processes call this alike, each works on its share of every batch, and all end with the
    network of the first process. Only the first one needs `evaluate`, `checkpoint` and the callbacks.

    Args:
        model: in train mode afterwards; its device and memory format are kept.
        phases: `enter(model, phase)` is called at the start of each, also of one without steps.
        seed: of the randomness inside the network (dropout), re-seeded at every step.
        loss: mean loss of (outputs, targets); cross-entropy with the settings' label smoothing unless given.
        distillation: a teacher's loss that is mixed into it.
        begin_step: called before each step with the network in train mode and the number of steps done.
        watch: looks at the network after each step; its state is part of the checkpoint.
        evaluate: accuracy in percent, called at the end of every phase and `settings.evaluations` times in between.
        checkpoint: where an unfinished training is stored and found.
        on_row, progress: called with every row of the history; advanced at every step under `title`.
        on_best: called at the end with the state of the network that scored best once all blocks had entered.

    Raises:
        UserError: the loss or its gradient is not finite (the message names the step, the phase, and the first layer at
            fault), or there are more processes than images in a batch.
    """
    if settings.batch_size < world_size():
        given = f"batch_size={settings.batch_size}"
        raise UserError(f"{given} leaves some of the {world_size()} processes without an image: start fewer")
    objective = Objective(loss or CrossEntropy(settings.label_smoothing), distillation, settings.precision)
    run = TrainingRun(model, settings, watch)
    if saved := broadcast(checkpoint.load() if checkpoint else None):
        run.restore(saved)
    _Loop(run, phases, data, objective, seed, enter, begin_step, evaluate, checkpoint, on_row, title).train(progress)
    return run.finish(on_best)


@dataclass
class _Loop:
    """What `fit` was given, around the run that it advances."""

    run: TrainingRun
    phases: Sequence[Phase]
    data: TrainingData
    objective: Objective
    seed: int
    enter: Callable[[nn.Module, Phase], None]
    begin_step: Callable[[nn.Module, int], None]
    evaluate: Callable[[nn.Module], float] | None
    checkpoint: Checkpoint | None
    on_row: Callable[[Row], None]
    title: str

    def train(self, progress: Progress) -> None:
        """All phases, from the first step that is not done."""
        run, total, last = self.run, self._total(), 0
        batches = iter(self.data.batches(run.step, rank(), world_size())) if run.step < total else iter(())
        if run.step < total:
            batches = self._checked(batches)
        with progress.task(self.title, total, done=run.step) as task:
            for index, phase in enumerate(self.phases):
                if index >= run.begun:
                    self.enter(run.model, phase)
                    broadcast_parameters(run.model)
                    run.begin(index, phase)
                first, last = last, last + phase.steps
                if run.settings.compile and run.step < last:
                    batches = self._compile(batches)
                while run.step < last:
                    self._step(index, next(batches), first)
                    loss = run.history[-1]["loss"]
                    task.advance(1, f"phase {index + 1}/{len(self.phases)}, loss {loss:.3f}")

    def _total(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, once cross-entropy of the first one is known to be computable; the run stays as it is.

        Raises UserError where network, loss and batch do not fit each other.
        """
        batch = next(batches)
        if self.run.step == 0 and isinstance(self.objective.loss, CrossEntropy):  # a given one may count its calls
            with whole_batch_norm():
                try_out(self.run.model.train(), self.objective, batch)
        return itertools.chain([batch], batches)

    def _compile(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Compiles the network as it is in this phase, and its teacher, checked on the next batch, which is kept."""
        run, batch = self.run, next(batches)
        with whole_batch_norm():
            run.network = compiled(run.model.train(), self.objective, batch, self.seed)
            self.objective = with_compiled_teacher(self.objective, batch[0])
        return itertools.chain([batch], batches)

    def _step(self, index: int, batch: Batch, first: int) -> None:
        """One step of phase number `index`, which began at step `first`, and its row."""
        run, phase, settings = self.run, self.phases[index], self.run.settings
        self.begin_step(run.model.train(), run.step)
        lr = learning_rate(phase, run.step - first, settings.schedule) * settings.warmup(run.step)
        try:
            value = run.advance(self.objective, batch, lr, self.seed + run.step)
        except Diverged as where:
            raise UserError(_diverged(self.title, run.step + 1, phase, str(where))) from None
        row = {"step": run.step, "phase": index, "loss": value, "lr": lr}
        run.history.append(row)
        if run.step == first + phase.steps or self._is_measured(run.step):
            row |= {"accuracy": self.evaluate(run.result())} if self.evaluate else {}
            row |= run.watch.row() if run.watch else {}
        if "accuracy" in row and not any(later.enters for later in self.phases[index + 1 :]):
            run.compare(row["accuracy"])
        self.on_row(row)
        if self.checkpoint and run.step < self._total() and run.step % settings.checkpoint_every == 0:
            self.checkpoint.save(run.snapshot())

    def _is_measured(self, step: int) -> bool:
        """Whether the curve is measured within a phase: at round(total · k / evaluations) for k = 1, 2, …"""
        total, evaluations = self._total(), self.run.settings.evaluations
        near = round(step * evaluations / total)
        return any(0 < k < evaluations and round(total * k / evaluations) == step for k in range(near - 1, near + 2))


def _diverged(title: str, step: int, phase: Phase, where: str) -> str:
    entered = ", ".join(phase.enters) or "all blocks together"
    return f"{title} diverged at step {step} (phase of {entered}): {where} is not finite; lower the learning rate"
