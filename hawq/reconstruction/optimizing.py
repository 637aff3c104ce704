"""Reconstruction of one unit: roundings and steps that bring its outputs closest to the float ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.modes import analysis_mode, eval_mode
from hawq.progress import Task
from hawq.quantization import FakeQuantizer, input_quantizer, original_weight, weight_quantizer
from hawq.reconstruction.cache import Inputs, Stored
from hawq.reconstruction.descent import can_descend, descend
from hawq.reconstruction.dropping import dropped, mixed
from hawq.reconstruction.rounding import SoftRounding
from hawq.reconstruction.settings import Reconstruction
from hawq.reconstruction.stand_ins import stand_ins, standing_in

BETA_FIRST, BETA_LAST = 20.0, 2.0
"""The exponent of the regulariser falls from the first to the second (2004.10568, §3.2)."""

_LOG = logging.getLogger(__name__)
_NO_DESCENT = (
    "descent is for a Conv2d or Linear that is one product with its weight, rows of at most 8,192 weights and a "
    "quantiser that only rounds and clips; adaround or brecq reconstructs it"
)
_EVALUATED = 64  # images at a time


@dataclass(frozen=True)
class Data:
    """What a unit is reconstructed on, for N images.

    Args:
        inputs: that the quantised network gives it.
        exact: those of the float network; None where they are not needed.
        targets: its outputs in the float network.
        weights: of the squared errors, (rows, ...) as the outputs of one image; None for equal ones.
    """

    inputs: Inputs
    exact: Inputs | None
    targets: Stored
    weights: Tensor | None

    def __len__(self) -> int:
        return len(self.targets.values)

    def error(self, outputs: Tensor, places: Tensor | slice) -> Tensor:
        """Mean of w · (z − z_float)² over the images at `places` and all outputs of each."""
        squares = (outputs - self.targets.at(places)).square()
        if self.weights is None:
            return squares.mean()
        return (squares.unflatten(0, (-1, len(self.weights))) * self.weights).mean()

    @torch.no_grad()
    def total(self, module: nn.Module) -> float:
        """The error of a module over all images, without dropping."""
        total = 0.0
        with eval_mode(module):
            for first in range(0, len(self), _EVALUATED):
                places = slice(first, min(first + _EVALUATED, len(self)))
                outputs = self.inputs.call(module, self.inputs.at(places))
                total += float(self.error(outputs, places)) * (places.stop - first)
        return total / len(self)


def reconstruct_unit(
    name: str,
    module: nn.Module,
    layers: Sequence[nn.Module],
    data: Data,
    settings: Reconstruction,
    seed: int,
    task: Task,
) -> tuple[float, float]:
    """Moves the weights of `layers` to chosen points of their grids, and trains the steps of their inputs' quantisers.

    Minimises E(V, s) / E(nearest) + λ · mean of 1 − |2h(V) − 1|^β over the weights, by Adam; roundings of a single
    layer are then improved one by one (`descend`). What results is kept only where its error is below that of rounding
    to nearest with the steps as they were.

    Args:
        name: of the module, for the log.
        module: of the quantised network, changed in place.
        layers: in it.
        data: its inputs and its outputs in the float network.
        settings: of the optimisation.
        seed: of the order of images, and of what is dropped.
        task: advanced by every step.

    Returns:
        The errors of rounding to nearest and of the module as it is now.
    """
    before = data.total(module)
    steps = _trained_steps(layers) if settings.step_lr else []
    roundings = stand_ins(layers, SoftRounding)
    free = sum(one.num_free() for one in roundings.values())
    if not before or not (free or steps):
        task.advance(settings.iterations)
        return before, before
    old_steps = [step.detach().clone() for step in steps]
    old_weights = {layer: original_weight(layer).detach().clone() for layer in roundings}
    generator = torch.Generator(device=data.targets.values.device).manual_seed(seed)
    with ExitStack() as stack:
        stack.enter_context(standing_in(roundings))
        stack.enter_context(dropped(layers, settings.drop, generator))
        _optimise(module, list(dict.fromkeys(roundings.values())), steps, data, settings, before, generator, task)
    for layer, rounding in roundings.items():
        weight_quantizer(layer).hold(original_weight(layer).detach())  # type: ignore[union-attr]
        if layer is module and data.weights is None and can_descend(layer, rounding, data):
            descend(layer, rounding, data, optimised=settings.iterations > 0)
        else:
            if not settings.iterations:
                _LOG.warning("%s stays rounded to nearest: %s", name, _NO_DESCENT)
            _decide(layer, rounding)
    after = data.total(module)
    if after < before:
        return before, after
    for step, old in zip(steps, old_steps, strict=True):
        step.data.copy_(old)
    for layer, weight in old_weights.items():
        original_weight(layer).data.copy_(weight)
    return before, before


def _trained_steps(layers: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The trained parameters of the quantisers of what enters the layers."""
    quantizers = [one for layer in layers if (one := input_quantizer(layer)) is not None and one.enabled]
    return [parameter for quantizer in quantizers for parameter in quantizer.parameters()]


def _optimise(
    module: nn.Module,
    roundings: list[SoftRounding],
    steps: list[nn.Parameter],
    data: Data,
    settings: Reconstruction,
    unit: float,
    generator: torch.Generator,
    task: Task,
) -> None:
    """All steps of Adam; `unit` is the error that counts as 1."""
    variables = [one.variable for one in roundings]
    free = sum(one.num_free() for one in roundings)
    rounder = torch.optim.Adam(variables, settings.rounding_lr()) if variables else None
    stepper = torch.optim.Adam(steps, settings.step_lr) if steps else None
    batches = _batches(len(data), settings.batch_size, generator)
    with analysis_mode(module, [*variables, *steps]):
        for iteration in range(settings.iterations):
            places = next(batches)
            entering = data.inputs.at(places)
            if settings.drop and data.exact is not None:
                pairs = zip(entering, data.exact.at(places), strict=True)
                entering = [mixed(x, exact, settings.drop, generator) for x, exact in pairs]
            loss = error = data.error(data.inputs.call(module, entering), places) / unit
            beta = _beta(iteration / settings.iterations, settings.warmup)
            if beta is not None and free and settings.regularization:
                undecided = torch.stack([one.undecided(beta) for one in roundings]).sum()
                loss = error + settings.regularization / free * undecided
            for optimizer in (rounder, stepper):
                if optimizer is not None:
                    optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if rounder is not None:
                rounder.step()
            if stepper is not None:
                stepper.param_groups[0]["lr"] = settings.step_lr * cosine(iteration / settings.iterations)
                stepper.step()
            task.advance(1, f"error {float(error.detach()):.2f} of nearest" if iteration % 50 == 0 else "")


def _beta(share: float, warmup: float) -> float | None:
    """β after a share of the steps: falls linearly from 20 to 2; None during the warm-up."""
    if share < warmup:
        return None
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * (1 - share) / (1 - warmup)


def cosine(share: float) -> float:
    """The factor that a learning rate has left after a share of all steps: from 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of places, shuffled in each pass."""
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator, device=generator.device)
        yield from order.split(size)[: count // size]


def _decide(layer: nn.Module, rounding: SoftRounding) -> None:
    """Moves the weight of a layer to the codes chosen, where the quantiser then leaves it; else it stays."""
    quantizer = weight_quantizer(layer)
    assert isinstance(quantizer, FakeQuantizer)
    weight = original_weight(layer).detach()
    moved = rounding.rounded(weight)
    if torch.equal(quantizer.codes(moved)[0], rounding.codes()) or rounding.large is not None:
        original_weight(layer).data.copy_(moved)
