"""The fixed samples that a curvature is averaged over, in batches, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from hawq.distributed import all_gather, rank

Batch = tuple[Tensor, Tensor]


class Samples:
    """This process's batches of (inputs (N, ...), targets (N, ...)), and their place among those of all processes.

    Args:
        batches: fixed pairs; a ragged last batch is weighted by its samples.

    Raises:
        ValueError: no samples in any process.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)
        counts = all_gather(self.local_count)
        self.count = sum(counts)
        """Samples of all processes."""
        if not self.count:
            raise ValueError("the curvature needs at least one batch, none was given")
        self.first = sum(counts[: rank()])
        """Index, among all samples, of the first one that this process holds."""

    @property
    def local_count(self) -> int:
        """Samples of this process."""
        return sum(len(inputs) for inputs, _ in self.batches)

    @property
    def largest_batch(self) -> int:
        """Samples in the largest batch of this process; 0 where it holds none."""
        return max((len(inputs) for inputs, _ in self.batches), default=0)

    def weighted(self) -> Iterator[tuple[Batch, float]]:
        """The batches of this process, each with its share of all samples."""
        for batch in self.batches:
            yield batch, len(batch[0]) / self.count

    def input(self, index: int) -> Tensor:
        """The input (1, ...) of one of this process's samples. Raises IndexError for one that it does not hold."""
        for inputs, _ in self.batches:
            if index < len(inputs):
                return inputs[index : index + 1]
            index -= len(inputs)
        raise IndexError("this process holds fewer samples")

    def cut(self, size: int) -> None:
        """Splits batches of more than `size` samples."""
        self.batches = _cut(self.batches, size)

    def most_influential(self, influence: Sequence[float], share: float) -> list[Batch]:
        """The `share` of all samples (at least one) with the largest influence, those that this process holds.

        Args:
            influence: one number per sample of this process.
            share: of the samples of all processes, 0 … 1.
        """
        everyone = all_gather(influence)
        order = sorted((-value, owner, i) for owner, own in enumerate(everyone) for i, value in enumerate(own))
        chosen = {i for _, owner, i in order[: max(1, round(share * self.count))] if owner == rank()}
        starts = accumulate((len(inputs) for inputs, _ in self.batches), initial=0)
        picked: list[Batch] = []
        for (inputs, targets), start in zip(self.batches, starts, strict=False):
            rows = [i - start for i in sorted(chosen) if start <= i < start + len(inputs)]
            if rows:
                picked.append((inputs[rows], targets[rows]))
        joined = [(torch.cat([i for i, _ in picked]), torch.cat([t for _, t in picked]))] if picked else []
        return _cut(joined, self.largest_batch)


def channels_last(batches: Sequence[Batch]) -> list[Batch]:
    """Images (N, C, H, W) as channels last on CPUs, where convolutions are then two to three times faster."""
    return [
        (inputs.contiguous(memory_format=torch.channels_last), targets)
        if inputs.dim() == 4 and inputs.device.type == "cpu"
        else (inputs, targets)
        for inputs, targets in batches
    ]


def _cut(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The batches in pieces of at most `size` samples."""
    return [piece for i, t in batches for piece in zip(i.split(size), t.split(size), strict=True)]
