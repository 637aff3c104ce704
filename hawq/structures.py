"""Batches and outputs that are no single tensor: tuples, lists and mappings of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hawq.errors import UserError


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` applied to each tensor in its tuples, lists and mappings; anything else is kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in the tuples, lists and mappings of `value`, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def main_output(outputs: Any) -> Tensor:
    """The tensor itself, or the first one in a tuple, list or mapping (a network's auxiliary heads stand behind it).

    Raises UserError where there is none.
    """
    found = next(tensors_in(outputs), None)
    if found is None:
        raise UserError(
            f"the network's output is {described(outputs)}: a tensor, or a tuple that begins with one, is needed"
        )
    return found


def scores_classes(outputs: Tensor, classes: bool = True) -> bool:
    """Whether axis 1 of outputs (N, K, ...) has the scores of K > 1 classes; never where `classes` is false."""
    return classes and outputs.dim() > 1 and outputs.shape[1] > 1


def described(value: Any) -> str:
    """What a value that is no tensor is, in words."""
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


def pair_of(batch: Any, what: str) -> tuple[Tensor, Any]:
    """The inputs (N, ...) and targets of a batch.

    Args:
        batch: a tuple or list of two, the first a tensor of at least one sample.
        what: the batch is called, for the message.

    Raises:
        UserError: it has another form; says which.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        if batch[0].dim() and len(batch[0]):
            return batch[0], batch[1]
        raise UserError(f"{what} has inputs of the shape {tuple(batch[0].shape)}: give at least one sample in each")
    inner = f" with inputs {described(batch[0])}" if isinstance(batch, (tuple, list)) and len(batch) == 2 else ""
    form = f"of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else described(batch)
    raise UserError(f"{what} is {form}{inner}: give pairs of (inputs, targets), the inputs a tensor (N, ...)")
