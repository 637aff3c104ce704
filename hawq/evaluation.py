"""Accuracy of a network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hawq.modes import eval_mode
from hawq.progress import Progress


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_images: int, title: str = "") -> float:
    """Share of images whose largest output is their label, in percent, in eval mode; the mode is put back.

    A bar is shown when `title` is given. Raises ValueError when there are no images.
    """
    if num_images < 1:
        raise ValueError("accuracy needs at least one image, none was given")
    correct = 0
    with eval_mode(model), Progress(num_images, title, shown=bool(title)) as progress:
        for images, labels in batches:
            correct += int((model(images).argmax(1) == labels).sum())
            progress.advance(len(labels))
    return 100.0 * correct / num_images
