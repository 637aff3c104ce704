"""Where half-done work is kept, so that a killed run can go on; the caller decides in which file."""

from __future__ import annotations

from typing import Any, Protocol


class Checkpoint(Protocol):
    """Keeps the newest state of an analysis, a search, a reconstruction or a training."""

    def load(self) -> dict[str, Any] | None:
        """What `save` stored last; None where there is nothing."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Stores a state: a dictionary of tensors, plain values, and lists and dictionaries of them."""
        ...
