"""The training loop: phases in, a trained network out, able to stop and go on at any step."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hawq.distributed import all_gather, all_reduce_coalesced, broadcast, broadcast_parameters, rank, shard, world_size
from hawq.errors import UserError
from hawq.finetuning.compiling import compiled
from hawq.finetuning.distillation import Distillation
from hawq.finetuning.divergence import Diverged, name_culprit
from hawq.finetuning.optimizer import make_optimizer
from hawq.finetuning.parallel import whole_batch_norm
from hawq.finetuning.schedule import learning_rate
from hawq.finetuning.settings import Training
from hawq.finetuning.step import Batch, Network, Objective, add_gradients, gradient_length
from hawq.progress import SILENT, Progress
from hawq.records import Phase

Row = dict[str, Any]


@runtime_checkable
class TrainingData(Protocol):
    """Training batches as a function of the step alone, so that a resumed run sees what an undisturbed one sees."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterable[Batch]:
        """Endless (inputs, targets) from `first_step` on, on the model's device; one of `parts` shares of each."""
        ...


class RepeatedLoader:
    """Any sized iterable of (inputs, targets), say a DataLoader, read again and again as training data."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    @property
    def steps_per_epoch(self) -> int:
        return len(self._loader)

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Endless batches; the loader decides their order, so only its first pass can be skipped into.

        In a process group each process' loader must give the same batches, of which it takes its share.
        """
        while True:
            for inputs, targets in itertools.islice(self._loader, first_step % len(self._loader), None):
                own = shard(len(inputs), part, parts)
                yield inputs[own].to(self._device), targets[own].to(self._device)
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
    on_best: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: Progress = SILENT,
    title: str = "training",
) -> list[Row]:
    """Trains `model` in place through all phases; returns one row a step: step, phase, loss, lr, at times accuracy.

    In a process group all processes call this alike, each works on its share of every batch, and all end with the
    network of the first. It alone needs what evaluates, stores and hears.

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
        progress: hears of every step, under `title`.
        on_best: hears at the end the state of the network that measured best once all blocks had entered.

    Raises:
        UserError: the loss or its gradient stops being finite; names the step, the phase, and the first layer at fault.
            Or there are more processes than images in a batch.
    """
    if settings.batch_size < world_size():
        given = f"{settings.section}.batch_size={settings.batch_size}"
        raise UserError(f"{given} leaves some of the {world_size()} processes without an image: start fewer")
    hard = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    objective = Objective(hard, distillation, settings.precision)
    run = _Run(model, settings, watch)
    if saved := broadcast(checkpoint.load() if checkpoint else None):
        run.restore(saved)
    total = sum(phase.steps for phase in phases)
    batches = iter(data.batches(run.step, rank(), world_size())) if run.step < total else iter(())
    measured = {round(total * k / settings.evaluations) for k in range(1, settings.evaluations)}
    first = 0
    with progress.task(title, total, done=run.step) as task:
        for index, phase in enumerate(phases):
            if index >= run.begun:
                enter(model, phase)
                broadcast_parameters(model)
                run.begin(index, phase)
            last = first + phase.steps
            if settings.compile and run.step < last:
                batch = next(batches)
                batches = itertools.chain([batch], batches)
                with whole_batch_norm():
                    run.network = compiled(model.train(), objective, batch, seed, f"{settings.section}.compile")
            while run.step < last:
                begin_step(model.train(), run.step)
                lr = learning_rate(phase, run.step - first, settings.schedule) * settings.warmup(run.step)
                try:
                    value = run.advance(objective, next(batches), lr, seed + run.step)
                except Diverged as where:
                    raise UserError(_diverged(title, run.step + 1, phase, str(where))) from None
                row = {"step": run.step, "phase": index, "loss": value, "lr": lr}
                run.history.append(row)
                if run.step == last or run.step in measured:
                    row |= {"accuracy": evaluate(run.result())} if evaluate else {}
                    row |= watch.row() if watch else {}
                if "accuracy" in row and not any(later.enters for later in phases[index + 1 :]):
                    run.compare(row["accuracy"])
                on_row(row)
                if checkpoint and run.step < total and run.step % settings.checkpoint_every == 0:
                    checkpoint.save(run.snapshot())
                task.advance(1, f"phase {index + 1}/{len(phases)}, loss {value:.3f}")
            first = last
    if run.average:
        model.load_state_dict(run.average.module.state_dict())
    if run.best:
        on_best(run.best["state"])
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
        self.best: dict[str, Any] | None = None

    def begin(self, index: int, phase: Phase) -> None:
        """A phase begins, and where blocks become quantised in it the average begins anew: it was another network's."""
        self.begun = index + 1
        if phase.enters or not self.average:
            self.average = self._new_average()

    def _new_average(self) -> AveragedModel | None:
        """θ̄ ← d·θ̄ + (1 − d)·θ for parameters, steps of quantisers and statistics of batch norm alike."""
        decay = self.settings.ema_decay
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None

    def advance(self, objective: Objective, batch: Batch, lr: float, seed: int) -> float:
        """One step; the loss before it. Raises Diverged, weights left alone, when it or its gradient is not finite."""
        torch.manual_seed(seed + (rank() << 32))  # each process draws for its own samples
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with whole_batch_norm():
            loss = add_gradients(self.network, objective, batch, self.settings.accumulate)
        own = float(loss)
        all_reduce_coalesced(
            [loss, *(parameter.grad for parameter in self.model.parameters() if parameter.grad is not None)]
        )
        value, length = float(loss), gradient_length(self.model)
        if not math.isfinite(value + float(length)):
            found = all_gather((math.isfinite(own), self._culprit(objective, batch[0], seed, own)))
            raise Diverged(min(found, key=lambda pair: pair[0])[1])  # of a process whose own part is not finite
        if self.settings.clip_norm is not None:
            clip_grads_with_norm_(self.model.parameters(), self.settings.clip_norm, length)
        self.optimizer.step()
        if self.watch:
            self.watch.after_step(self.model)
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1
        return value

    def _culprit(self, objective: Objective, inputs: Tensor, seed: int, loss: float) -> str:
        """What is not finite first when the step's forward is run again."""
        torch.manual_seed(seed)
        pieces = inputs.tensor_split(self.settings.accumulate)
        with whole_batch_norm():
            return name_culprit(self.model, lambda: [objective.outputs(self.model, piece) for piece in pieces], loss)

    def result(self) -> nn.Module:
        """The network that the training has come to: the average of the weights where one is kept."""
        return self.average.module if self.average else self.model

    def compare(self, accuracy: float) -> None:
        """Keeps a copy of the network if it is the most accurate one so far."""
        if not self.best or accuracy > self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "state": copy.deepcopy(self.result().state_dict())}

    def snapshot(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "watch": self.watch.state_dict() if self.watch else None,
            "step": self.step,
            "begun": self.begun,
            "history": self.history,
            "best": self.best,
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
        self.best = saved["best"]


def _diverged(title: str, step: int, phase: Phase, where: str) -> str:
    entered = ", ".join(phase.enters) or "all blocks together"
    return f"{title} diverged at step {step} (phase of {entered}): {where} is not finite; lower the learning rate"
