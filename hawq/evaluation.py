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
    chosen, labels = classes(model, batches, num_images, progress, title)
    return percent(chosen == labels)


def percent(found: Tensor) -> float:
    """Share in percent of those that are true, of (N,) bool. Raises ValueError for none."""
    if not len(found):
        raise ValueError("accuracy needs at least one image, none was given")
    return 100.0 * int(found.sum()) / len(found)


def measured(chosen: Tensor, labels: Tensor) -> Measured:
    """The classes that images got, (N,), beside their labels (N,), as a record. Raises ValueError for no images."""
    wrong = (chosen != labels).nonzero().flatten()
    return Measured(percent(chosen == labels), len(labels), tuple(wrong.tolist()), tuple(chosen[wrong].tolist()))


@torch.no_grad()
def classes(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_images: int,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> tuple[Tensor, Tensor]:
    """The class of each image's largest output, and its label: (N,) int64 each on the CPU, in the order of the images.

    Arguments as for `accuracy`.
    """
    found = [torch.zeros(2, 0, dtype=torch.int64)]
    with eval_mode(model), progress.task(title, num_images) as task:
        for images, labels in batches:
            chosen = model(images).argmax(1)
            found.append(torch.stack([chosen, labels.to(chosen)]).cpu())
            task.advance(len(labels))
    return tuple(torch.cat(found, 1))  # type: ignore[return-value]


def classes_on(
    model: nn.Module,
    images: Dataset[Any],
    device: torch.device,
    workers: int = 0,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> tuple[Tensor, Tensor]:
    """`classes` and labels, (N,) each, of all (input, label) pairs of a data set, loaded by `workers` processes."""
    return classes(model, batches_on(images, device, workers), len(images), progress, title)  # type: ignore[arg-type]


def batches_on(images: Dataset[Any], device: torch.device, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs (N, ...), labels (N,)) of all images, in order, on the device, loaded by `workers` processes."""
    if isinstance(images, InBatches) and not workers:
        yield from images.batches(range(len(images)), _BATCH, device)
        return
    for inputs, labels in DataLoader(images, _BATCH, num_workers=workers):
        yield inputs.to(device), labels.to(device)
