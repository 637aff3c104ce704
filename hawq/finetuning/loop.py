"""The training loop: phases in, a trained network out, able to stop and go on at any step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hawq.errors import UserError
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.settings import Training
from hawq.progress import Progress
from hawq.records import Phase

Batch = tuple[Tensor, Tensor]
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
    loss = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    optimizer = _make_optimizer(model, settings)
    history: list[Row] = []
    step, begun = 0, 0  # steps done, phases entered
    if checkpoint and (saved := checkpoint.load()):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if watch:
            watch.load_state_dict(saved["watch"])
        step, begun, history = saved["step"], saved["begun"], saved["history"]
    total = sum(phase.steps for phase in phases)
    batches = iter(data.batches(step)) if step < total else iter(())
    measured = {round(total * k / settings.evaluations) for k in range(1, settings.evaluations)}
    first = 0
    with Progress(total, title, done=step) as progress:
        for index, phase in enumerate(phases):
            if index >= begun:
                enter(model, phase)
                begun = index + 1
            while step < first + phase.steps:
                begin_step(model.train(), step)
                row = _train_step(model, optimizer, next(batches), loss, distillation, phase, step - first, seed + step)
                if watch:
                    watch.after_step(model)
                step += 1
                history.append({"step": step, "phase": index, **row})
                if not math.isfinite(row["loss"]):
                    raise UserError(_diverged(title, step, phase))
                if step == first + phase.steps or step in measured:
                    history[-1] |= {"accuracy": evaluate(model)} if evaluate else {}
                    history[-1] |= watch.row() if watch else {}
                on_row(history[-1])
                if checkpoint and step < total and step % settings.checkpoint_every == 0:
                    checkpoint.save(_snapshot(model, optimizer, watch, step, begun, history))
                progress.advance(1, f"phase {index + 1}/{len(phases)}, loss {row['loss']:.3f}")
            first += phase.steps
    return history


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
    distillation: Distillation | None,
    phase: Phase,
    step: int,
    seed: int,
) -> Row:
    lr = learning_rate(phase, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    torch.manual_seed(seed)
    outputs = model(batch[0])
    value = loss(outputs, batch[1])
    if distillation:
        value = distillation.mix(value, outputs, batch[0])
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {"loss": float(value.detach()), "lr": lr}


def learning_rate(phase: Phase, step: int) -> float:
    """lr + ½(1 − cos(π·t/T))·(final_lr − lr) at step t of a phase of T steps."""
    return phase.lr + 0.5 * (1 - math.cos(math.pi * step / phase.steps)) * (phase.final_lr - phase.lr)


def _make_optimizer(model: nn.Module, settings: Training) -> torch.optim.SGD:
    """SGD; weight decay on tensors with at least two axes that are not step sizes."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_weight = parameter.dim() > 1 and not name.endswith("scale")
        (decayed if is_weight else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def _snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    watch: StepWatch | None,
    step: int,
    begun: int,
    history: list[Row],
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "watch": watch.state_dict() if watch else {},
        "step": step,
        "begun": begun,
        "history": history,
    }


def _diverged(title: str, step: int, phase: Phase) -> str:
    entered = ", ".join(phase.enters) or "all blocks together"
    return f"{title} diverged at step {step} (phase of {entered}): the loss is not finite; lower the learning rate"
