"""End-to-end tuning: codes stay; the numbers around them are trained until the network's outputs are the float ones."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from hawq.finetuning import soft_loss
from hawq.modes import analysis_mode, eval_mode, full_precision
from hawq.progress import SILENT, Progress, Task
from hawq.quantization import FakeQuantizer, LearnedStep, input_batches, original_weight
from hawq.reconstruction.optimizing import cosine
from hawq.reconstruction.reconstructing import Row
from hawq.reconstruction.settings import Tuning
from hawq.reconstruction.stand_ins import stand_ins, standing_in
from hawq.resuming import Checkpoint
from hawq.structures import main_output, scores_classes

_LOG = logging.getLogger(__name__)
_LEAST_SIZE = 1e-3  # that a parameter's steps are relative to, so that zeros move too (Adafactor, 1804.04235, §8)
_LEAST_ENTROPY = 0.1  # of log K; a network has less on images that it was trained on until it knew them
_AT_ONCE = 8  # images whose whole graph is kept
_SEEDS_APART = 1_000_003


class TrainedStep(nn.Module):
    """Takes the place of a weight's quantiser: codes · s, the codes fixed and s trained.

    Args:
        quantizer: of the weight, switched on; its step s is a parameter.
        weight: that it quantises (out, in, ...).
    """

    codes: Tensor

    def __init__(self, quantizer: LearnedStep, weight: Tensor) -> None:
        super().__init__()
        self._quantizer = (quantizer,)  # in a tuple: it is no part of this module
        codes, scale, _ = quantizer.codes(weight.detach())
        self.register_buffer("codes", codes)
        self.step = nn.Parameter(scale.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight of the codes, of the shape of `weight`, which is not looked at."""
        return self.codes * self.step.abs().clamp_min(torch.finfo(self.step.dtype).tiny)

    @torch.no_grad()
    def put_back(self, weight: Tensor) -> None:
        """Gives the quantiser the step as it is now, and `weight` the points of that grid."""
        values = self(weight)
        self._quantizer[0].scale.data.copy_(self.step.view_as(self._quantizer[0].scale))
        weight.data.copy_(values)


def tune(
    model: nn.Module,
    network: nn.Module,
    images: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    settings: Tuning | None = None,
    *,
    seed: int = 0,
    classes: bool = True,
    checkpoint: Checkpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    progress: Progress = SILENT,
    title: str = "end-to-end tuning",
) -> list[Row]:
    """Trains steps, biases, and scales and shifts of norms by the network's outputs; no code of a weight changes.

    Lowers T²·KL(softmax(z_float/T) ‖ softmax(z/T)) of the outputs z, or ‖z − z_float‖² / ‖z_float‖² (`chosen_loss`), by
    Adam, whose steps are relative to the size of each parameter and fall to 0 along a cosine: the end-to-end training
    of quantisation parameters of EfficientQAT (2407.11062, §3.3), without labels. Batch norm's statistics stay.

    Args:
        model: the float network; left unchanged.
        network: of `quantize` or `reconstruct`; ends as it is after the epoch with the lowest error, which may be none.
        images: network inputs, as for `quantize`; the first `settings.num_samples` are used.
        settings: two epochs unless given.
        seed: of the order of images.
        classes: whether axis 1 of the outputs has scores of classes.
        checkpoint: where an unfinished tuning is stored after each epoch, and found.
        on_row: called with every row.
        progress: advanced at every step under `title`.

    Returns:
        A row for each epoch, and one before the first: step (the epoch), error over all images, their number, the loss.

    Raises:
        UserError: there are no images.
    """
    settings = settings or Tuning(epochs=2)
    inputs = torch.cat(input_batches(images, next(model.parameters()).device))[: settings.num_samples]
    wanted = torch.cat([_float_outputs(model, some) for some in inputs.split(settings.batch_size)])
    work = _Work(network, inputs, wanted, settings, chosen_loss(settings, wanted, classes))
    if saved := checkpoint.load() if checkpoint else None:
        network.load_state_dict(saved["network"])
    else:
        saved = work.start()
        on_row(saved["rows"][0])
    rows: list[Row] = saved["rows"]
    if not work.trains_something():
        _LOG.warning("nothing to tune: no step, bias or norm of this network has a trained parameter")
        return rows
    with progress.task(title, settings.epochs * work.steps, done=(len(rows) - 1) * work.steps) as task:
        for epoch in range(len(rows), settings.epochs + 1):
            saved["optimizer"] = work.epoch(epoch, seed, saved["optimizer"], task)
            rows.append(work.row(epoch))
            if min(rows, key=itemgetter("error")) is rows[-1]:
                saved["best"] = copy.deepcopy(network.state_dict())
            if checkpoint:
                checkpoint.save(saved | {"network": network.state_dict()})
            on_row(rows[-1])
    network.load_state_dict(saved["best"])
    return rows


@dataclass(frozen=True)
class _Work:
    """What every epoch works on: images (N, ...) and the float network's outputs for them."""

    network: nn.Module
    inputs: Tensor
    wanted: Tensor
    settings: Tuning
    loss: str  # kl or squared

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return max(len(self.inputs) // self.settings.batch_size, 1)

    def start(self) -> dict[str, Any]:
        """The state before the first epoch."""
        state = copy.deepcopy(self.network.state_dict())
        return {"best": state, "optimizer": None, "rows": [self.row(0)]}

    def row(self, epoch: int) -> Row:
        """What is told of an epoch, whose error is measured now."""
        return {"step": epoch, "error": self._error(), "images": len(self.inputs), "loss": self.loss}

    def trains_something(self) -> bool:
        """Whether the network has a parameter that tuning may change."""
        with _trained(self.network) as parameters:
            return bool(parameters)

    def epoch(self, number: int, seed: int, state: dict[str, Any] | None, task: Task) -> dict[str, Any]:
        """One pass over the images, from a state of the optimiser; that at the end. The first is number 1."""
        generator = torch.Generator().manual_seed(seed + _SEEDS_APART * number)
        order = torch.randperm(len(self.inputs), generator=generator).to(self.inputs.device)
        batches = order.split(self.settings.batch_size)[: self.steps]
        with _trained(self.network) as parameters:
            optimizer = torch.optim.Adam([{"params": [one], "size": max(_rms(one), _LEAST_SIZE)} for one in parameters])
            if state:
                optimizer.load_state_dict(state)
            for place, batch in enumerate(batches):
                done = (number - 1 + place / self.steps) / self.settings.epochs
                for group in optimizer.param_groups:
                    group["lr"] = self.settings.lr * cosine(done) * group["size"]
                error = self._add_gradients(parameters, batch)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                task.advance(1, f"error {error:.3g}")
            return optimizer.state_dict()

    def _error(self) -> float:
        """Over all images."""
        with analysis_mode(self.network, []), torch.no_grad():
            places = torch.arange(len(self.inputs)).split(self.settings.batch_size)
            return sum(float(self._total(some)) for some in places) / self._size(self.wanted)

    def _add_gradients(self, parameters: Sequence[Tensor], batch: Tensor) -> float:
        """Backpropagates the error of the images at places `batch`, a few at a time; returns it."""
        size, total = self._size(self.wanted[batch]), 0.0
        for some in batch.split(_AT_ONCE):
            with analysis_mode(self.network, parameters):
                error = self._total(some) / size
                error.backward()
            total += float(error.detach())
        return total

    def _total(self, places: Tensor) -> Tensor:
        """The softened KL summed over the images at `places`, or ‖z − z_float‖²."""
        outputs, wanted = main_output(self.network(self.inputs[places])), self.wanted[places]
        if self.loss == "squared":
            return (outputs - wanted).square().sum()
        return len(wanted) * soft_loss(outputs, wanted, self.settings.temperature)

    def _size(self, wanted: Tensor) -> float:
        """What sums over the images of these float outputs are relative to: their number, or ‖z_float‖²."""
        if self.loss == "squared":
            return max(float(wanted.square().sum()), torch.finfo(torch.float32).tiny)
        return float(len(wanted))


def _float_outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad(), eval_mode(model), full_precision(inputs.device):
        return main_output(model(inputs.clone()))


def chosen_loss(settings: Tuning, outputs: Tensor, classes: bool = True) -> str:
    """What is lowered, "kl" or "squared", for these float outputs (N, K, ...).

    By `loss="auto"` the KL where their mean entropy is at least a tenth of log K. Below, a few images that the network
    wavers at make up most of the KL, and the squared error is lowered.
    """
    if not scores_classes(outputs, classes):
        return "squared"
    if settings.loss != "auto":
        return settings.loss
    logarithms = outputs.double().log_softmax(1)
    entropy = float(-(logarithms.exp() * logarithms).sum(1).mean())
    return "kl" if entropy >= _LEAST_ENTROPY * math.log(outputs.shape[1]) else "squared"


@contextmanager
def _trained(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """All that is trained; while active, weights on grids with a learned step are made of their codes and a step."""
    made = stand_ins(network.modules(), _trained_step)
    try:
        with standing_in(made):
            yield [*_around_weights(network), *(one.step for one in dict.fromkeys(made.values()))]
    finally:
        for layer, one in made.items():
            one.put_back(original_weight(layer))


def _trained_step(quantizer: FakeQuantizer, weight: Tensor) -> TrainedStep | None:
    return TrainedStep(quantizer, weight) if isinstance(quantizer, LearnedStep) else None


def _around_weights(network: nn.Module) -> list[nn.Parameter]:
    """Biases, scales and shifts of norms, steps of activations: of at most one axis, and no part of a weight."""
    named = network.named_parameters()
    return [one for name, one in named if one.dim() <= 1 and "parametrizations" not in name.split(".")]


def _rms(parameter: Tensor) -> float:
    return float(parameter.detach().double().square().mean().sqrt())
