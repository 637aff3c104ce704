"""The training loop: phases in, a trained network out, able to stop and go on at any step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hawq.errors import UserError
from hawq.finetuning.compiling import compiled
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.optimizer import make_optimizer
from hawq.finetuning.schedule import learning_rate
from hawq.finetuning.settings import Training
from hawq.finetuning.step import Batch, Network, Objective, add_gradients, clip_gradient
from hawq.progress import Progress
from hawq.records import Phase

Row = dict[str, Any]


@runtime_checkable
class TrainingData(Protocol):
    """Training batches as a function of the step alone, so that a resumed run sees what an undisturbed one sees."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, first_step: int) -> Iterable[Batch]:
        """Endless (inputs, targets) from `first_step` on, on the model's device."""
        ...


class RepeatedLoader:
    """Any sized iterable of (inputs, targets), say a DataLoader, read again and again as training data."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    @property
    def steps_per_epoch(self) -> int:
        return len(self._loader)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless batches; the loader decides their order, so only its first pass can be skipped into."""
        while True:
            for inputs, targets in itertools.islice(self._loader, first_step % len(self._loader), None):
                yield inputs.to(self._device), targets.to(self._device)
            first_step = 0


class TrainingCheckpoint(Protocol):
    """Where a half-done training is kept."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


class StepWatch(Protocol):
    """Follows the network through its training; `row` is added to the rows that hold an accuracy."""

    def after_step(self, model: nn.Module) -> None: ...

    def row(self) -> Row: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def fit(
    model: nn.Module,
    phases: Sequence[Phase],
    data: TrainingData,
    settings: Training,
    *,
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    distillation: Distillation | None = None,
    enter: Callable[[nn.Module, Phase], None] = lambda model, phase: None,
    begin_step: Callable[[nn.Module, int], None] = lambda model, step: None,
    watch: StepWatch | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: TrainingCheckpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    title: str = "training",
) -> list[Row]:
    """Trains `model` in place through all phases; returns one row a step: step, phase, loss, lr, at times accuracy.

    Args:
        model: in train mode afterwards; the caller's device and memory format are kept.
        phases: `enter(model, phase)` is called at the start of each, also of one without steps.
        seed: of the randomness inside the network (dropout), re-seeded at every step.
        loss: mean loss of (outputs, targets); cross-entropy with the settings' label smoothing unless given.
        distillation: what is learnt besides.
        begin_step: called with the network in train mode and the number of steps done, before each step.
        watch: looks at the network after each step; its state is part of the checkpoint.
        evaluate: accuracy in percent, called at the end of every phase and `settings.evaluations` times between.
        checkpoint: where to store and find a half-done training.
        on_row: hears every row of the history as it is made.

    Raises:
        UserError: the loss stops being finite; names the step and the phase.
    """
    hard = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    objective = Objective(hard, distillation, settings.precision)
    run = _Run(model, settings, watch)
    if checkpoint and (saved := checkpoint.load()):
        run.restore(saved)
    total = sum(phase.steps for phase in phases)
    batches = iter(data.batches(run.step)) if run.step < total else iter(())
    measured = {round(total * k / settings.evaluations) for k in range(1, settings.evaluations)}
    first = 0
    with Progress(total, title, done=run.step) as progress:
        for index, phase in enumerate(phases):
            if index >= run.begun:
                enter(model, phase)
                run.begin(index)
            last = first + phase.steps
            if settings.compile and run.step < last:
                batch = next(batches)
                batches = itertools.chain([batch], batches)
                run.network = compiled(model.train(), objective, batch, seed, f"{settings.section}.compile")
            while run.step < last:
                begin_step(model.train(), run.step)
                lr = learning_rate(phase, run.step - first, settings.schedule) * settings.warmup(run.step)
                value = run.advance(objective, next(batches), lr, seed + run.step)
                row = {"step": run.step, "phase": index, "loss": value, "lr": lr}
                run.history.append(row)
                if not math.isfinite(value):
                    raise UserError(_diverged(title, run.step, phase))
                if run.step == last or run.step in measured:
                    row |= {"accuracy": evaluate(run.result())} if evaluate else {}
                    row |= watch.row() if watch else {}
                on_row(row)
                if checkpoint and run.step < total and run.step % settings.checkpoint_every == 0:
                    checkpoint.save(run.snapshot())
                progress.advance(1, f"phase {index + 1}/{len(phases)}, loss {value:.3f}")
            first = last
    if run.average:
        model.load_state_dict(run.average.module.state_dict())
    return run.history


class _Run:
    """A network being trained: everything that a step changes, and that a checkpoint must hold."""

    def __init__(self, model: nn.Module, settings: Training, watch: StepWatch | None) -> None:
        self.model, self.settings, self.watch = model, settings, watch
        self.network: Network = model  # what steps call: the model itself, or its compiled form
        self.optimizer = make_optimizer(
            model, settings.optimizer, settings.lr, settings.momentum, settings.weight_decay
        )
        self.average: AveragedModel | None = None
        self.step, self.begun = 0, 0  # steps done, phases entered
        self.history: list[Row] = []

    def begin(self, phase: int) -> None:
        """A phase begins, and with it the average: before, other blocks were quantised."""
        self.begun = phase + 1
        self.average = self._new_average()

    def _new_average(self) -> AveragedModel | None:
        """θ̄ ← d·θ̄ + (1 − d)·θ for parameters, steps of quantisers and statistics of batch norm alike."""
        decay = self.settings.ema_decay
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None

    def advance(self, objective: Objective, batch: Batch, lr: float, seed: int) -> float:
        """One step; the loss before it."""
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        value = add_gradients(self.network, objective, batch, self.settings.accumulate)
        clip_gradient(self.model, self.settings.clip_norm)
        self.optimizer.step()
        if self.watch:
            self.watch.after_step(self.model)
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1
        return float(value)

    def result(self) -> nn.Module:
        """The network that the training has come to: the average of the weights where one is kept."""
        return self.average.module if self.average else self.model

    def snapshot(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "watch": self.watch.state_dict() if self.watch else None,
            "step": self.step,
            "begun": self.begun,
            "history": self.history,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = self._new_average()
        if self.average:
            self.average.load_state_dict(saved["average"])
        if self.watch:
            self.watch.load_state_dict(saved["watch"])
        self.step, self.begun, self.history = saved["step"], saved["begun"], saved["history"]


def _diverged(title: str, step: int, phase: Phase) -> str:
    entered = ", ".join(phase.enters) or "all blocks together"
    return f"{title} diverged at step {step} (phase of {entered}): the loss is not finite; lower the learning rate"
