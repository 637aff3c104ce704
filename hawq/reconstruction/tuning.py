"""End-to-end tuning: codes stay; the numbers around them are trained until the network's outputs are the float ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hawq.modes import analysis_mode, eval_mode, full_precision
from hawq.progress import SILENT, Progress, Task
from hawq.quantization import FakeQuantizer, LearnedStep, original_weight
from hawq.reconstruction.optimizing import cosine
from hawq.reconstruction.settings import Reconstruction
from hawq.reconstruction.stand_ins import stand_ins, standing_in
from hawq.structures import main_output

_LOG = logging.getLogger(__name__)
_LEAST_SIZE = 1e-3  # that a parameter's steps are relative to, so that zeros move too (Adafactor, 1804.04235, §8)
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
    images: Tensor,
    settings: Reconstruction,
    seed: int,
    *,
    saved: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: Progress = SILENT,
    title: str = "end-to-end tuning",
) -> tuple[float, float]:
    """Trains steps, biases, and scales and shifts of norms by the network's outputs; no code of a weight changes.

    Minimises ‖z − z_float‖² / ‖z_float‖² of the outputs z by Adam, whose steps are relative to the size of each
    parameter and fall to 0 along a cosine: the end-to-end training of quantisation parameters of EfficientQAT
    (2407.11062, §3.3), by the float network instead of labels. Batch norm's statistics stay as they are. What results
    is kept only where the error over all images is lower than before.

    Args:
        model: the float network; left unchanged.
        network: the quantised one, changed in place.
        images: network inputs (N, ...).
        settings: `tuning_epochs` passes over the images, in batches of `batch_size`, with `tuning_lr`.
        seed: of the order of images.
        saved: what `save` was given last, where a pass was finished before; `network` is then as it was at that time.
        save: called after every pass with what the others need.
        progress: advanced at every step under `title`.

    Returns:
        The error over all images before and now.
    """
    count, batch_size = settings.tuning_epochs, settings.batch_size
    if saved is None:
        saved = {"epoch": 0, "start": copy.deepcopy(network.state_dict()), "optimizer": None}
        saved["before"] = _relative_error(model, network, images.split(batch_size))
    with _trained(network) as parameters:
        num_trained = len(parameters)
    if not num_trained:
        _LOG.warning("nothing to tune: no step, bias or norm of this network has a trained parameter")
        return saved["before"], saved["before"]
    each = max(len(images) // batch_size, 1)
    with progress.task(title, count * each, done=saved["epoch"] * each) as task:
        for epoch in range(saved["epoch"], count):
            generator = torch.Generator().manual_seed(seed + _SEEDS_APART * (epoch + 1))
            order = torch.randperm(len(images), generator=generator).to(images.device)
            batches = (images[places] for places in order.split(batch_size)[:each])
            rates = [settings.tuning_lr * cosine((epoch + number / each) / count) for number in range(each)]
            saved |= {"epoch": epoch + 1, "optimizer": _pass(model, network, batches, rates, saved["optimizer"], task)}
            save(saved)
    after = _relative_error(model, network, images.split(batch_size))
    if not after < saved["before"]:
        network.load_state_dict(saved["start"])
        after = saved["before"]
    return saved["before"], after


def _pass(
    model: nn.Module,
    network: nn.Module,
    batches: Iterable[Tensor],
    rates: Sequence[float],
    state: dict[str, Any] | None,
    task: Task,
) -> dict[str, Any]:
    """A step for each batch and learning rate, from a state of the optimiser; that at the end."""
    with _trained(network) as parameters:
        optimizer = torch.optim.Adam([{"params": [one], "size": max(_rms(one), _LEAST_SIZE)} for one in parameters])
        if state:
            optimizer.load_state_dict(state)
        for inputs, rate in zip(batches, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            error = _add_gradients(model, network, parameters, inputs)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            task.advance(1, f"error {error:.3g}")
        return optimizer.state_dict()


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


def _add_gradients(model: nn.Module, network: nn.Module, parameters: Sequence[Tensor], inputs: Tensor) -> float:
    """Backpropagates ‖z − z_float‖² / ‖z_float‖² of a batch, a few images at a time; returns it."""
    wanted = _wanted(model, inputs)
    size, total = wanted.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny), 0.0
    for some, their in zip(inputs.split(_AT_ONCE), wanted.split(_AT_ONCE), strict=True):
        with analysis_mode(network, parameters):
            error = _squared_error(network, some, their) / size
            error.backward()
        total += float(error.detach())
    return total


def _wanted(model: nn.Module, inputs: Tensor) -> Tensor:
    """The float outputs."""
    with torch.no_grad(), eval_mode(model), full_precision(inputs.device):
        return main_output(model(inputs.clone()))


def _squared_error(network: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    """‖z − z_float‖² of all outputs."""
    return (main_output(network(inputs)) - wanted).square().sum()


def _relative_error(model: nn.Module, network: nn.Module, batches: Iterable[Tensor]) -> float:
    """‖z − z_float‖² / ‖z_float‖² over all images."""
    total = size = 0.0
    for inputs in batches:
        wanted = _wanted(model, inputs)
        with analysis_mode(network, []), torch.no_grad():
            total += float(_squared_error(network, inputs, wanted))
        size += float(wanted.square().sum())
    return total / max(size, torch.finfo(torch.float32).tiny)
