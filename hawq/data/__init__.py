"""Data sets: stored images and labels, how they are split, and how they become batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hawq.lazy import lazy_names

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


__getattr__ = lazy_names(__name__, _HOMES)
