"""Batches of network inputs, made of stored images and labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hawq.checks import check_range
from hawq.data.array_transform import ArrayTransform
from hawq.data.splits import RawImages
from hawq.distributed import shard

Batch = tuple[Tensor, Tensor]
_MAX_WORKERS = 1024


class Images(Dataset[tuple[Tensor, int]]):
    """Network inputs. An item is addressed by its index, or by (index, seed) to be augmented with that seed.

    Args:
        images, labels: as a data set stores them, N of each.
        prepare: turns a stored image into a network's input, float32 (3, H, W).
        augment: the same with random changes, or None.
    """

    def __init__(
        self,
        images: RawImages,
        labels: np.ndarray,
        prepare: Callable[[Any], Tensor],
        augment: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self._images, self._labels, self._prepare, self._augment = images, labels, prepare, augment

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: Any) -> tuple[Tensor, int]:
        """Input (3, H, W) and label. Raises UserError for an image that cannot be decoded."""
        index, seed = item if isinstance(item, tuple) else (item, None)
        if seed is None or self._augment is None:
            return self._prepare(self._images[index]), int(self._labels[index])
        with _seeded(seed):
            return self._augment(self._images[index]), int(self._labels[index])

    def batches(self, indices: Sequence[int], batch_size: int, device: torch.device) -> Iterator[Batch]:
        """The images at `indices`, not augmented, (B, 3, H, W) with labels (B,); the last B may be smaller."""
        for begin in range(0, len(indices), batch_size):
            yield self.batch(indices[begin : begin + batch_size], device)

    def batch(self, items: Sequence[Any], device: torch.device) -> Batch:
        """The items, all indices or all (index, seed), as one batch: (B, 3, H, W) and labels (B,), on a device."""
        if whole := self.whole_batch(items, device):
            return whole
        inputs, labels = default_collate([self[item] for item in items])
        return inputs.to(device), labels.to(device)

    def whole_batch(self, items: Sequence[Any], device: torch.device) -> Batch | None:
        """`batch` of images in memory that are prepared all at once; None where they are files or prepared singly."""
        seeded = bool(items) and isinstance(items[0], tuple)
        prepare = self._augment if seeded and self._augment is not None else self._prepare
        if not isinstance(prepare, ArrayTransform) or not isinstance(self._images, np.ndarray):
            return None
        indices = np.array([item[0] for item in items] if seeded else items, np.int64)
        seeds = [seed for _, seed in items] if seeded and self._augment is not None else None
        labels = torch.from_numpy(self._labels[indices].astype(np.int64))
        return prepare.whole_batch(self._images[indices], seeds, device), labels.to(device)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of Python and PyTorch; both are restored afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it writes a stack trace for CUDA each time
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


class TrainBatches:
    """Shuffled, augmented training batches as a function of (seed, step) alone, so that a restarted run sees the same.

    A last batch that is not full is left out.

    Args:
        images: the training images, at least one.
        batch_size: images per step; no more than there are.
        seed: of order and augmentation.
        device: where batches are placed.
        workers: processes that load images, 0 to 1024; 0 loads them in the calling process.

    Raises:
        ValueError: no images, or a number out of range.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, device: torch.device, workers: int = 0) -> None:
        check_range("batch_size", batch_size, least=1)
        check_range("workers", workers, least=0, most=_MAX_WORKERS)
        if not len(images):
            raise ValueError("the data set has no training images: give at least one")
        self._images, self._seed, self._device, self._workers = images, seed, device, workers
        self._batch_size = min(batch_size, len(images))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the images."""
        return len(self._images) // self._batch_size

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Endless images (B, 3, H, W) with labels (B,) from `first_step` on, or one of `parts` shards of each batch."""
        epoch, offset = divmod(first_step, self.steps_per_epoch)
        while True:
            yield from self._load([items[shard(len(items), part, parts)] for items in self._epoch(epoch)[offset:]])
            epoch, offset = epoch + 1, 0

    def _load(self, chunks: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        """A batch of each chunk of items, made here or by worker processes."""
        if not self._workers:
            yield from (self._images.batch(items, self._device) for items in chunks)
            return
        pinned = self._device.type == "cuda"
        loader = DataLoader(self._images, batch_sampler=chunks, num_workers=self._workers, pin_memory=pinned)
        for images, labels in loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def _epoch(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Batches of (index, augmentation seed) of one epoch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._images), generator=generator).tolist()
        seeds = torch.randint(2**31, (len(order),), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))
        size = self._batch_size
        return [items[begin : begin + size] for begin in range(0, self.steps_per_epoch * size, size)]


def fixed_batches(images: Images, indices: Sequence[int], batch_size: int, device: torch.device) -> list[Batch]:
    """The images at `indices`, not augmented, as images (B, 3, H, W) with labels (B,); the last B may be smaller."""
    return list(images.batches(indices, batch_size, device))


def sample_indices(num_images: int, num_samples: int, seed: int) -> list[int]:
    """Up to `num_samples` distinct indices below `num_images`, in random order, the same for the same seed."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:num_samples].tolist()
