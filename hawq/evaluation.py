"""Accuracy of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hawq.modes import eval_mode
from hawq.progress import SILENT, Progress

_BATCH = 100


@torch.no_grad()
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
    correct = 0
    with eval_mode(model), progress.task(title, num_images) as task:
        for images, labels in batches:
            correct += int((model(images).argmax(1) == labels).sum())
            task.advance(len(labels))
    return 100.0 * correct / num_images


def accuracy_on(
    model: nn.Module,
    images: Dataset[Any],
    device: torch.device,
    workers: int = 0,
    progress: Progress = SILENT,
    title: str = "accuracy",
) -> float:
    """`accuracy`, in percent, on all (input, label) pairs of a data set, loaded by `workers` processes.

    Raises ValueError when the data set is empty.
    """
    loader = DataLoader(images, _BATCH, num_workers=workers)
    batches = ((inputs.to(device), labels.to(device)) for inputs, labels in loader)
    return accuracy(model, batches, len(images), progress, title)  # type: ignore[arg-type]
