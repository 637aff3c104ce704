"""Training batches, and where an unfinished training is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hawq.distributed import shard
from hawq.errors import UserError
from hawq.finetuning.step import Batch
from hawq.structures import described, map_tensors, pair_of


@runtime_checkable
class TrainingData(Protocol):
    """Training batches as a function of the step alone, so that a resumed run sees what an uninterrupted one sees."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in one pass over the data, None where it has no length."""
        ...

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterable[Batch]:
        """Endless (inputs (N, ...), targets (N, ...)) from `first_step` on, on the model's device.

        In a process group, part number `part` of the `parts` shares of each batch.
        """
        ...


class RepeatedLoader:
    """Any iterable of (inputs, targets) that can be read again, say a DataLoader or a list, as training data.

    Args:
        loader: gives (inputs (N, ...), targets) batches. One without a length, of a stream say, may be endless; then
            only `max_steps` says how long the training is.
        device: that batches are moved to.

    Raises:
        UserError: it cannot be read twice, or is empty.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise UserError(f"the training data is {described(loader)}: give a DataLoader or a list of batches")
        if isinstance(loader, Iterator):
            raise UserError("the training data can be read only once: give a DataLoader or a list of batches")
        if isinstance(loader, (Tensor, Mapping)):
            raise UserError("the training data is no list of batches: give a DataLoader or pairs of (inputs, targets)")
        self._loader, self._device = loader, device
        if self.steps_per_epoch == 0:
            raise UserError("the training data is empty: give at least one batch")

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in one pass over the loader, None where it has no length."""
        try:
            return len(self._loader)
        except TypeError:
            return None

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Endless batches; the loader decides their order, so only its first pass can be skipped into.

        In a process group each process' loader must give the same batches, of which it takes its share.
        Raises UserError for a batch of another form, or a pass that gives none.
        """
        length = self.steps_per_epoch
        skipped = first_step if length is None else first_step % length
        while True:
            read = 0
            for batch in self._loader:
                read += 1
                if skipped:
                    skipped -= 1
                    continue
                inputs, targets = pair_of(batch, "a training batch")
                own = shard(len(inputs), part, parts)
                yield inputs[own].to(self._device), self._own(targets, own)
            if not read:
                raise UserError("the training data gave no batch: give at least one")

    def _own(self, targets: Any, own: slice) -> Any:
        return map_tensors(lambda x: x[own].to(self._device), targets)
