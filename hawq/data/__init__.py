"""Data sets: stored images and labels, how they are split, and how they become batches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hawq.data.batches import Images, TrainBatches, fixed_batches, sample_indices
    from hawq.data.image_folder import ImageFolder, ImageNet
    from hawq.data.in_memory import Cifar10, Cifar100, Digits
    from hawq.data.splits import ImageData, Splits
    from hawq.data.timm_data import TimmData
    from hawq.data.unlabelled import open_unlabelled

_HOMES = {
    "Cifar10": "in_memory",
    "Cifar100": "in_memory",
    "Digits": "in_memory",
    "ImageData": "splits",
    "ImageFolder": "image_folder",
    "ImageNet": "image_folder",
    "Images": "batches",
    "Splits": "splits",
    "TimmData": "timm_data",
    "TrainBatches": "batches",
    "open_unlabelled": "unlabelled",
    "fixed_batches": "batches",
    "sample_indices": "batches",
}

__all__ = [
    "Cifar10",
    "Cifar100",
    "Digits",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "Images",
    "Splits",
    "TimmData",
    "TrainBatches",
    "fixed_batches",
    "open_unlabelled",
    "sample_indices",
]


def __getattr__(name: str) -> Any:
    """Loads the module of a name when it is first used, so that `import hawq.data` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
