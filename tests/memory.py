"""A checkpoint in memory, and a way to be killed."""

from __future__ import annotations

import io
from typing import Any

import torch


class Killed(Exception):
    """Stands for the end of the process."""


class MemoryCheckpoint:
    """Keeps a serialised copy of the newest state, as a file would."""

    def __init__(self) -> None:
        self._data: bytes | None = None
        self.num_saved = 0

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._data = buffer.getvalue()
        self.num_saved += 1

    def load(self) -> dict[str, Any] | None:
        return None if self._data is None else torch.load(io.BytesIO(self._data), weights_only=True)


def kill_after(calls: int):
    """A function of any arguments that raises `Killed` at its call number `calls`."""
    count = 0

    def function(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise Killed

    return function
