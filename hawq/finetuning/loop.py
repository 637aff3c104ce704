"""The training loop: phases in, a trained network out, able to stop and go on at any step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hawq.errors import UserError
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.optimizer import make_optimizer
from hawq.finetuning.schedule import learning_rate
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
        evaluate: accuracy in percent, called at the end of every phase and `settings.evaluations` times between.
        checkpoint: where to store and find a half-done training.
        on_row: hears every row of the history as it is made.

    Raises:
        UserError: the loss stops being finite; names the step and the phase.
    """
    loss = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    optimizer = make_optimizer(model, settings.optimizer, settings.lr, settings.momentum, settings.weight_decay)
    history: list[Row] = []
    step, begun = 0, 0  # steps done, phases entered
    if checkpoint and (saved := checkpoint.load()):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
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
                lr = learning_rate(phase, step - first, settings.schedule) * settings.warmup(step)
                row = _train_step(model, optimizer, next(batches), loss, distillation, lr, seed + step)
                step += 1
                history.append({"step": step, "phase": index, **row})
                if not math.isfinite(row["loss"]):
                    raise UserError(_diverged(title, step, phase))
                if evaluate and (step == first + phase.steps or step in measured):
                    history[-1]["accuracy"] = evaluate(model)
                on_row(history[-1])
                if checkpoint and step < total and step % settings.checkpoint_every == 0:
                    checkpoint.save(_snapshot(model, optimizer, step, begun, history))
                progress.advance(1, f"phase {index + 1}/{len(phases)}, loss {row['loss']:.3f}")
            first += phase.steps
    return history


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
    distillation: Distillation | None,
    lr: float,
    seed: int,
) -> Row:
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    torch.manual_seed(seed)
    outputs = model(batch[0])
    value = loss(outputs, batch[1])
    if distillation:
        value = distillation.mix(value, outputs, batch[0])
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {"loss": float(value.detach()), "lr": lr}


def _snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, begun: int, history: list[Row]
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "begun": begun,
        "history": history,
    }


def _diverged(title: str, step: int, phase: Phase) -> str:
    entered = ", ".join(phase.enters) or "all blocks together"
    return f"{title} diverged at step {step} (phase of {entered}): the loss is not finite; lower the learning rate"
