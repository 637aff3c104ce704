"""Data sets of small images that are held in memory: digits, CIFAR-10, CIFAR-100."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hawq.checks import check_range
from hawq.components import component
from hawq.data.array_transform import ArrayTransform
from hawq.data.download import download
from hawq.data.npz import Parts, read_npz
from hawq.data.splits import Splits
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

_MAX_SIZE = 1024  # pixels; 1,797 digits of this side fill 5.7 GB


@component("dataset/digits")
@dataclass(frozen=True)
class Digits:
    """Handwritten digits that ship with scikit-learn: 1,797 images of 8×8 pixels, 360 of them for testing.

    Args:
        size: side in pixels to which the images are enlarged, 8 to 1024.
        augment: shift training images by up to an eighth of their side.

    Raises:
        ValueError: `size` out of range.
    """

    size: int = 32
    augment: bool = True
    name = "digits"
    num_classes = 10
    normalization = Normalization((0.306, 0.306, 0.306), (0.324, 0.324, 0.324))

    def __post_init__(self) -> None:
        check_range("size", self.size, least=8, most=_MAX_SIZE)

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[np.ndarray], Tensor]:
        """uint8 (H, W, 3) → float32 (3, H, W), normalised; see `ImageData.prepare`."""
        return ArrayTransform(preprocessing, normalization, shift=augmented and self.augment)

    def open(self) -> Splits:
        """All images as uint8 (N, size, size, 3); the split is stratified by class and always the same."""
        import torch
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from torchvision.transforms import v2

        digits = load_digits()
        grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]  # (N, 1, 8, 8)
        sized = v2.functional.resize(grey, [self.size, self.size], antialias=True)
        images = sized.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
        train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
        labels = digits.target
        return Splits(images[train], labels[train], images[test], labels[test], self.num_classes)


@component("dataset/cifar10", not_in_key=("path",))
@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32×32 pixels.

    Args:
        path: an `.npz` with train_images, train_labels, test_images, test_labels (uint8, N×32×32×3), or a folder of
            torchvision's CIFAR10, into which it is downloaded when absent.
        augment: random crop after padding by an eighth of the side (4 pixels), and horizontal flip.
    """

    path: str
    augment: bool = True
    name = "cifar10"
    num_classes = 10
    normalization = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    torchvision = "CIFAR10"

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[np.ndarray], Tensor]:
        """uint8 (H, W, 3) → float32 (3, H, W), normalised; see `ImageData.prepare`."""
        changed = augmented and self.augment
        return ArrayTransform(preprocessing, normalization, shift=changed, flip=changed)

    def open(self) -> Splits:
        """Images as uint8 (N, 32, 32, 3), in the order of the file or of torchvision.

        Raises FileNotFoundError where nothing is there and nothing can be downloaded, ValueError for other contents.
        """
        path = Path(self.path)
        parts = (
            read_npz(path, self.num_classes)
            if path.suffix.lower() == ".npz"
            else _read_torchvision(path, self.torchvision)
        )
        return Splits(*parts, self.num_classes)


@component("dataset/cifar100", not_in_key=("path",))
@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100 (Krizhevsky, 2009), in the same two formats."""

    name = "cifar100"
    num_classes = 100
    normalization = Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    torchvision = "CIFAR100"


def _read_torchvision(path: Path, name: str) -> Parts:
    """Images and labels of torchvision's data set `name` below `path`, downloaded when absent."""
    from torchvision import datasets

    dataset = getattr(datasets, name)
    folder = path / dataset.base_folder
    try:
        if not folder.is_dir():
            download(dataset.url, folder, dataset.tgz_md5)
        train = dataset(str(path), train=True)
        test = dataset(str(path), train=False)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"path={path} holds no {name} and it could not be downloaded ({error}): give an .npz, or a folder with "
            f"{dataset.base_folder}/"
        ) from error
    return train.data, np.asarray(train.targets), test.data, np.asarray(test.targets)
