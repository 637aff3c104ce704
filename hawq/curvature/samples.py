"""The fixed samples that a curvature is averaged over, in batches, shared out among processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hawq.distributed import all_gather, rank
from hawq.modes import analysis_mode

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

    def picked(self, chosen: Collection[int]) -> list[Batch]:
        """The samples of this process with the given indices, joined to batches of at most the present size."""
        joined: dict[Any, list[Batch]] = {}
        starts = accumulate((len(inputs) for inputs, _ in self.batches), initial=0)
        for (inputs, targets), start in zip(self.batches, starts, strict=False):
            rows = [i - start for i in sorted(chosen) if start <= i < start + len(inputs)]
            if rows:
                joined.setdefault(inputs.shape[1:], []).append((inputs[rows], targets[rows]))
        whole = [(torch.cat([i for i, _ in own]), torch.cat([t for _, t in own])) for own in joined.values()]
        return _cut(whole, self.largest_batch)

    def heaviest(self, weights: Sequence[float], *, share: float = 1.0, left: float = 0.0) -> list[int]:
        """The samples of this process among the heaviest of all processes.

        Args:
            weights: one number per sample of this process.
            share: of all samples, at most so many are taken, and at least one.
            left: no more are taken once this share of the sum of all weights is left to the others.
        """
        everyone = all_gather(list(weights))
        order = sorted((-value, owner, i) for owner, own in enumerate(everyone) for i, value in enumerate(own))
        total = sum(map(sum, everyone))
        remaining = accumulate((value for value, _, _ in order), initial=total)
        enough = next((count for count, rest in enumerate(remaining) if rest <= left * total), len(order))
        count = max(1, min(enough, round(share * self.count)))
        return [i for _, owner, i in order[:count] if owner == rank()]


def fast_layout(model: nn.Module, batches: Sequence[Batch]) -> list[Batch]:
    """Images (N, C, H, W) as channels last on CPUs, where convolutions are then two to three times faster.

    As they are where the network cannot take them (it may `view` them).
    """
    fast = [
        (inputs.contiguous(memory_format=torch.channels_last), targets)
        if inputs.dim() == 4 and inputs.device.type == "cpu"
        else (inputs, targets)
        for inputs, targets in batches
    ]
    try:
        with analysis_mode(model, []), torch.no_grad():
            for inputs, _ in fast[:1]:
                model(inputs[:1])
    except (RuntimeError, ValueError):  # also one that cannot take a single sample
        return list(batches)
    return fast


def _cut(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The batches in pieces of at most `size` samples."""
    return [piece for i, t in batches for piece in zip(i.split(size), t.split(size), strict=True)]
