"""Batches, outputs and losses of a form that an analysis can work with, checked before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hawq.curvature.operator import Batch, Loss
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.structures import described, pair_of, tensors_in

_MOST_BATCHES, _MOST_BYTES = (
    10_000,
    2**33,
)  # of an iterable without a length: one that never ends is told from a long one
_FLAT = tuple(f"{name}Backward" for name in ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "Heaviside"))


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
    read, size_bytes = [], 0
    for batch in batches:
        read.append(_checked(batch))
        size_bytes += sum(part.numel() * part.element_size() for part in read[-1])
        if (len(read) == _MOST_BATCHES or size_bytes > _MOST_BYTES) and not _has_length(batches):
            raise UserError(
                f"the batches have not ended after {len(read)} ({size_bytes / 2**20:.0f} MiB): give those to analyse, "
                "say list(itertools.islice(batches, 8))"
            )
    return read


def _has_length(batches: Iterable[Any]) -> bool:
    """Whether an iterable says how long it is; a loader of an endless data set has `__len__`, and fails in it."""
    try:
        len(batches)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _checked(batch: Any) -> Batch:
    inputs, targets = pair_of(batch, "a batch of the analysis")
    if not isinstance(targets, Tensor):
        raise UserError(
            f"the targets of a batch are {described(targets)}: give one tensor (N, ...), which your loss takes apart"
        )
    if targets.dim() == 0 or len(targets) != len(inputs):
        raise UserError(f"a batch has inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}: give one each")
    return inputs, targets


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


def detached_layers(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss: Loss
) -> list[str]:
    """Layers that take part in the forward pass, and whose weight no gradient of the loss reaches.

    That is so behind no_grad, detach or argmax, and behind round and its like, whose slope is zero everywhere. Their
    curvature comes out as zero, which says nothing of what quantising them does.

    Args:
        model: any module.
        weights: qualified name of a layer → its weight.
        inputs, targets: a few samples (N, ...).
        loss: mean loss of (outputs, targets).
    """
    called: set[str] = set()
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(lambda *_, name=name: called.add(name))  # type: ignore[misc]
        for name in weights
    ]
    try:
        with analysis_mode(model, list(weights.values())):
            reached = _leaves(loss(model(inputs), targets).grad_fn)
    finally:
        for handle in handles:
            handle.remove()
    without = [name for name, weight in weights.items() if id(weight) not in reached]
    return [name for name in without if name in called or _matters(model, [weights[name]], inputs)]


def _leaves(node: Any) -> set[int]:
    """The tensors (by `id`) that a graph leads to, not counting edges whose slope is zero everywhere."""
    waiting, seen, leaves = [node], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or _is_flat(node):
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _is_flat(node: Any) -> bool:
    """Whether an operation of the graph has no slope: its gradient is not missing, it is zero."""
    return node.name().startswith(_FLAT) or bool(getattr(node, "_saved_rounding_mode", None))


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
