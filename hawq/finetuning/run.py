"""The state of a training: everything that a step changes and that a checkpoint must hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hawq.distributed import all_gather, all_reduce_coalesced, rank
from hawq.finetuning.divergence import Diverged, name_culprit
from hawq.finetuning.optimizer import make_optimizer, set_learning_rate
from hawq.finetuning.parallel import whole_batch_norm
from hawq.finetuning.settings import Training
from hawq.finetuning.step import Batch, Network, Objective, add_gradients, gradient_length
from hawq.records import Phase

Row = dict[str, Any]


class StepWatch(Protocol):
    """Follows a network through its training."""

    def after_step(self, model: nn.Module) -> None:
        """Looks at the network after an optimiser step; it may change weights."""
        ...

    def row(self) -> Row:
        """Figures that are added to the rows of the history that hold an accuracy."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        ...


class TrainingRun:
    """A network in training.

    Args:
        model: trained in place.
        settings: of the optimiser, averaging and clipping.
        watch: looks at the network after each step, or None.
    """

    def __init__(self, model: nn.Module, settings: Training, watch: StepWatch | None) -> None:
        self.model, self.settings, self.watch = model, settings, watch
        self.network: Network = model  # what steps call: the model itself, or its compiled form
        rates = (settings.lr, settings.momentum, settings.weight_decay, settings.quantizer_rate())
        self.optimizer = make_optimizer(model, settings.optimizer, *rates)
        self.average: AveragedModel | None = None
        self.step, self.begun = 0, 0  # steps done, phases begun
        self.history: list[Row] = []
        self.best: dict[str, Any] | None = None

    def begin(self, index: int, phase: Phase) -> None:
        """Begins phase number `index`. Where blocks become quantised the average restarts: the network has changed."""
        self.begun = index + 1
        if phase.enters or not self.average:
            self.average = self._new_average()

    def _new_average(self) -> AveragedModel | None:
        """θ̄ ← d·θ̄ + (1 − d)·θ for parameters, steps of quantisers and statistics of batch norm alike."""
        decay = self.settings.ema_decay
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None

    def advance(self, objective: Objective, batch: Batch, lr: float, seed: int) -> float:
        """One optimiser step on a batch (inputs (N, ...), targets (N, ...)).

        Returns the loss before the step. Raises Diverged, with the weights unchanged, where the loss or its gradient is
        not finite.
        """
        torch.manual_seed(seed + (rank() << 32))  # each process draws for its own samples
        set_learning_rate(self.optimizer, lr)
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
        """The network that the training has produced so far: the averaged one where an average is kept."""
        return self.average.module if self.average else self.model

    def compare(self, accuracy: float) -> None:
        """Keeps a copy of the network if it is the most accurate one so far; `accuracy` in percent."""
        if not self.best or accuracy > self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "state": copy.deepcopy(self.result().state_dict())}

    def finish(self, on_best: Callable[[dict[str, Any]], None]) -> list[Row]:
        """Puts averaged weights into the model, passes the best state to `on_best`, and returns the history."""
        if self.average:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.best:
            on_best(self.best["state"])
        return self.history

    def snapshot(self) -> dict[str, Any]:
        """The state that `restore` continues from."""
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
        """Continues from a `snapshot` of the same network and settings."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = self._new_average()
        if self.average:
            self.average.load_state_dict(saved["average"])
        if self.watch:
            self.watch.load_state_dict(saved["watch"])
        self.step, self.begun, self.history = saved["step"], saved["begun"], saved["history"]
        self.best = saved["best"]
