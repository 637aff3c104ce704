"""Putting stored weights into a network: by name, all of them, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads every tensor by name; whole-number buffers (batch counters) may be absent.

    Raises ValueError, beginning with `origin`, that lists missing names, unexpected names, and other shapes.
    """
    check_names(model, state, origin)
    current = OrderedDict(state)
    current._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # modules ask for their version
    model.load_state_dict(current, strict=False)


def check_names(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Raises ValueError, beginning with `origin`, unless `state` has the names and shapes that `model` needs."""
    expected = model.state_dict()
    needed = {name for name, tensor in expected.items() if tensor.is_floating_point()}
    missing = sorted(needed - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = sorted(
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if expected[name].shape != state[name].shape
    )
    if missing or unexpected or shapes:
        raise ValueError(
            f"{origin} is for another network than {type(model).__name__}: missing names {_listed(missing)}, "
            f"unexpected names {_listed(unexpected)}, other shapes {_listed(shapes)}; choose the matching model"
        )


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Names in brackets; a long list is cut and counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"[{', '.join(names[:most])}]{more}" if names else "none"
