"""Accuracy of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hawq.modes import eval_mode
from hawq.progress import SILENT, Progress
from hawq.records import Measured

_BATCH = 100


@runtime_checkable
class InBatches(Protocol):
    """Images that make whole batches themselves, faster than one by one."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def batches(self, indices: Sequence[int], batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The images at `indices`, (B, ...) with labels (B,), on the device; the last B may be smaller."""
        ...


def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_images: int,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> float:
    """Top-1 accuracy in percent: the share of images whose largest output is at their label.

    Args:
        model: run in eval mode; its own mode is restored.
        batches: (images (N, ...), labels (N,)) on the model's device; the model gives (N, classes).
        num_images: in all batches together.
        progress: advanced by every batch, under `title`.

    Raises:
        ValueError: there are no images.
    """
    if num_images < 1:
        raise ValueError("accuracy needs at least one image, none was given")
    return percent(hits(model, batches, num_images, progress, title))


def percent(found: Tensor) -> float:
    """Accuracy in percent of `hits` (N,) bool. Raises ValueError for none."""
    if not len(found):
        raise ValueError("accuracy needs at least one image, none was given")
    return 100.0 * int(found.sum()) / len(found)


def measured(found: Tensor) -> Measured:
    """What `hits` (N,) bool say, as a record. Raises ValueError for none."""
    return Measured(percent(found), len(found), tuple((~found).nonzero().flatten().tolist()))


@torch.no_grad()
def hits(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_images: int,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> Tensor:
    """Whether the largest output of each image is at its label: (N,) bool on the CPU, in the order of the images.

    Arguments as for `accuracy`.
    """
    found = []
    with eval_mode(model), progress.task(title, num_images) as task:
        for images, labels in batches:
            found.append((model(images).argmax(1) == labels).cpu())
            task.advance(len(labels))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def hits_on(
    model: nn.Module,
    images: Dataset[Any],
    device: torch.device,
    workers: int = 0,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> Tensor:
    """`hits`, (N,) bool, on all (input, label) pairs of a data set, loaded by `workers` processes."""
    return hits(model, batches_on(images, device, workers), len(images), progress, title)  # type: ignore[arg-type]


def batches_on(images: Dataset[Any], device: torch.device, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs (N, ...), labels (N,)) of all images, in order, on the device, loaded by `workers` processes."""
    if isinstance(images, InBatches) and not workers:
        yield from images.batches(range(len(images)), _BATCH, device)
        return
    for inputs, labels in DataLoader(images, _BATCH, num_workers=workers):
        yield inputs.to(device), labels.to(device)
