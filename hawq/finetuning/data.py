"""Training batches, and where an unfinished training is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from hawq.distributed import shard
from hawq.finetuning.step import Batch


@runtime_checkable
class TrainingData(Protocol):
    """Training batches as a function of the step alone, so that a resumed run sees what an uninterrupted one sees."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        ...

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterable[Batch]:
        """Endless (inputs (N, ...), targets (N, ...)) from `first_step` on, on the model's device.

        In a process group, part number `part` of the `parts` shares of each batch.
        """
        ...


class RepeatedLoader:
    """Any sized iterable of (inputs, targets), say a DataLoader, read again and again as training data.

    Args:
        loader: gives (inputs (N, ...), targets (N, ...)) batches, and has a length.
        device: that batches are moved to.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the loader."""
        return len(self._loader)

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Endless batches; the loader decides their order, so only its first pass can be skipped into.

        In a process group each process' loader must give the same batches, of which it takes its share.
        """
        while True:
            for inputs, targets in itertools.islice(self._loader, first_step % len(self._loader), None):
                own = shard(len(inputs), part, parts)
                yield inputs[own].to(self._device), targets[own].to(self._device)
            first_step = 0


class TrainingCheckpoint(Protocol):
    """Where an unfinished training is kept."""

    def load(self) -> dict[str, Any] | None:
        """What `save` stored last, or None."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Stores the state of an unfinished training: tensors and plain values."""
        ...
