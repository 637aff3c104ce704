"""Loading stored weights into a network: by name, all of them, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of batch norm: it changes no output


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], origin: str, *, whole_numbers: bool = False) -> None:
    """Loads every tensor by name into `model`.

    Args:
        model: changed in place.
        state: name → tensor; a tensor that the model has under several names is needed under one of them.
        origin: what the state was read from; the message of an error begins with it.
        whole_numbers: whether integer and boolean buffers are needed too, batch counters excepted.

    Raises:
        ValueError: lists missing names, unexpected names, other shapes, and other kinds of numbers.
    """
    check_names(model, state, origin, whole_numbers=whole_numbers)
    current = OrderedDict(state)
    current._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # modules ask for their version
    model.load_state_dict(current, strict=False)


def check_names(model: nn.Module, state: Mapping[str, Tensor], origin: str, *, whole_numbers: bool = False) -> None:
    """Raises what `load_strictly` would, and loads nothing; of `state` only shapes and dtypes are read."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    given = {_place(expected[name]) for name in expected.keys() & state.keys()}
    missing = sorted(
        name
        for name, tensor in expected.items()
        if _is_needed(name, tensor, whole_numbers) and name not in state and _place(tensor) not in given
    )
    unexpected = sorted(state.keys() - expected.keys())
    shapes = sorted(
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if expected[name].shape != state[name].shape
    )
    kinds = sorted(
        f"{name} of {_kind(state[name])} numbers for {_kind(expected[name])} ones"
        for name in expected.keys() & state.keys()
        if _kind(expected[name]) != _kind(state[name])
    )
    if missing or unexpected or shapes or kinds:
        other_kinds = f", other kinds {_listed(kinds)}" if kinds else ""
        raise ValueError(
            f"{origin} is for another network than {type(model).__name__}: missing names {_listed(missing)}, "
            f"unexpected names {_listed(unexpected)}, other shapes {_listed(shapes)}{other_kinds}; "
            "choose the matching model"
        )


def whole_number_buffers(model: nn.Module) -> list[str]:
    """Names of integer and boolean tensors that a network keeps, without batch counters."""
    state = model.state_dict()
    return [name for name, x in state.items() if isinstance(x, Tensor) and _is_exact(x) and not _counts(name)]


def _is_needed(name: str, tensor: Tensor, whole_numbers: bool) -> bool:
    return not _is_exact(tensor) or (whole_numbers and not _counts(name))


def _is_exact(tensor: Tensor) -> bool:
    return _kind(tensor) in ("whole", "boolean")


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for the tensors that are one, whatever their names; of empty ones, each is its own."""
    if not tensor.numel():
        return (id(tensor),)
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Names in brackets; a long list is cut and counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"[{', '.join(names[:most])}]{more}" if names else "none"
