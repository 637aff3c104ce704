"""Batches, outputs and losses of a form that an analysis can work with, checked before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hawq.curvature.operator import Batch, Loss
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.structures import described, pair_of, tensors_in

_MOST_BATCHES = 10_000  # of an iterable without a length: one that never ends is told from a long one


def fixed(batches: Iterable[Any]) -> list[Batch]:
    """The batches as a list of pairs of tensors, read once or, where that is possible, twice.

    Raises:
        UserError: a batch is no pair of an input tensor (N, ...) and a target tensor; the iterable does not end; or a
            second pass gives other batches (a loader that shuffles).
    """
    first = _read(batches)
    if isinstance(batches, Iterator):  # there is no second pass
        return first
    second = _read(batches)
    same = len(first) == len(second) and all(
        torch.equal(inputs.nan_to_num(), again.nan_to_num()) and torch.equal(targets, targets_again)
        for (inputs, targets), (again, targets_again) in zip(first, second, strict=True)
    )
    if not same:
        raise UserError(
            "the batches change between two passes (shuffling or augmentation): switch it off, or give list(loader)"
        )
    return first


def _read(batches: Iterable[Any]) -> list[Batch]:
    read = [_checked(batch) for batch in islice(batches, _MOST_BATCHES)]
    if len(read) == _MOST_BATCHES:
        raise UserError(
            f"the batches have not ended after {_MOST_BATCHES}: give those to analyse, say "
            "list(itertools.islice(batches, 8))"
        )
    return read


def _checked(batch: Any) -> Batch:
    inputs, targets = pair_of(batch, "a batch of the analysis")
    if not isinstance(targets, Tensor):
        raise UserError(
            f"the targets of a batch are {described(targets)}: give one tensor (N, ...), which your loss takes apart"
        )
    if targets.dim() == 0 or len(targets) != len(inputs):
        raise UserError(f"a batch has inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}: give one each")
    return inputs, targets


def have_one_shape(batches: Sequence[Batch]) -> bool:
    """Whether the samples of all batches can stand in one batch."""
    shapes = {(inputs.shape[1:], targets.shape[1:]) for inputs, targets in batches}
    return len(shapes) <= 1


def check_forms(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, *, one_tensor: bool) -> None:
    """Runs the network once on a few samples, and looks at what it and the loss give.

    Args:
        model: in any mode; it is analysed in eval mode.
        inputs, targets: a few samples (N, ...).
        loss: of (outputs, targets).
        one_tensor: whether the solver differentiates by the outputs, so that these must be one tensor.

    Raises:
        UserError: outputs of another form, or a loss that is no single number.
    """
    with analysis_mode(model, []), torch.no_grad():
        outputs = model(inputs)
        if one_tensor and not isinstance(outputs, Tensor):
            raise UserError(
                f"the network's output is {described(outputs)}: this solver needs one tensor, so wrap the network, or "
                "take Lanczos or PowerIteration of the Hessian"
            )
        value = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        form = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else described(value)
        raise UserError(f"the loss gives a value {form}: one number is needed, the mean over the batch")


def detached_blocks(
    model: nn.Module, weights: Mapping[str, Sequence[Tensor]], inputs: Tensor, targets: Tensor, loss: Loss
) -> list[str]:
    """Blocks whose weights the outputs depend on, and whose gradient never arrives: no_grad, detach, round or argmax.

    Their curvature comes out as zero, which says nothing of what quantising them does.

    Args:
        model: any module.
        weights: block → its weights.
        inputs, targets: a few samples.
        loss: mean loss of (outputs, targets).
    """
    flat = [weight for own in weights.values() for weight in own]
    with analysis_mode(model, flat):
        value = loss(model(inputs), targets)
        found: Sequence[Tensor | None] = [None] * len(flat)
        if value.requires_grad:
            found = torch.autograd.grad(value, flat, allow_unused=True)
    reached = {id(weight) for weight, gradient in zip(flat, found, strict=True) if gradient is not None}
    without = [name for name, own in weights.items() if not any(id(weight) in reached for weight in own)]
    return [name for name in without if _matters(model, weights[name], inputs)]


@torch.no_grad()
def _matters(model: nn.Module, weights: Sequence[Tensor], inputs: Tensor) -> bool:
    """Whether the outputs change with the weights, so that the block takes part in the forward pass."""
    with analysis_mode(model, []):
        before = [output.clone() for output in _tensors(model(inputs))]
        with _doubled(weights):
            after = _tensors(model(inputs))
            return any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))


@contextmanager
def _doubled(weights: Sequence[Tensor]) -> Iterator[None]:
    """The weights times −2 while active; they are put back bit for bit."""
    kept = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.mul_(-2)
        yield
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)


def _tensors(outputs: Any) -> list[Tensor]:
    return list(tensors_in(outputs))
