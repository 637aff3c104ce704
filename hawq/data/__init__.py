"""Images and labels: what there is, how it is cut into training and test, and how it becomes batches."""

from hawq.data.batches import Images, TrainBatches, fixed_batches, sample_indices
from hawq.data.image_folder import ImageFolder, ImageNet, TimmData
from hawq.data.in_memory import Cifar10, Cifar100, Digits
from hawq.data.splits import ImageData, Splits

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
    "sample_indices",
]
