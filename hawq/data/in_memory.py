"""Data sets of small images that lie in memory: digits, CIFAR-10, CIFAR-100."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import v2

from hawq.components import component
from hawq.data.splits import Splits
from hawq.records import Normalization, Preprocessing


@component("dataset/digits")
@dataclass(frozen=True)
class Digits:
    """Handwritten digits that ship inside scikit-learn: 1,797 images of 8×8, 360 of them for testing.

    Args:
        size: side that the images are enlarged to.
        augment: shift training images by up to an eighth of their side.

    Raises:
        ValueError: size below 8.
    """

    size: int = 32
    augment: bool = True
    name = "digits"
    num_classes = 10
    normalization = Normalization((0.306, 0.306, 0.306), (0.324, 0.324, 0.324))

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"dataset.size={self.size} is out of range: give 8 or more")

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[np.ndarray], Tensor]:
        shift = [v2.RandomCrop(self.size, padding=self.size // 8)] if augmented and self.augment else []
        return _from_array(normalization, shift)

    def open(self) -> Splits:
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
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32×32.

    Args:
        path: an `.npz` with train_images, train_labels, test_images, test_labels (uint8, N×32×32×3), or the folder of
            torchvision's CIFAR10, which is downloaded when absent.
        augment: random crop with 4 pixels of padding, and mirroring.
    """

    path: str
    augment: bool = True
    name = "cifar10"
    num_classes = 10
    normalization = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    torchvision = CIFAR10

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[np.ndarray], Tensor]:
        changes = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if augmented and self.augment else []
        return _from_array(normalization, changes)

    def open(self) -> Splits:
        path = Path(self.path)
        parts = _read_npz(path) if path.suffix == ".npz" else _read_torchvision(path, self.torchvision)
        return Splits(*parts, self.num_classes)


@component("dataset/cifar100", not_in_key=("path",))
@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100 (Krizhevsky, 2009), in the same two formats."""

    name = "cifar100"
    num_classes = 100
    normalization = Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    torchvision = CIFAR100


Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _from_array(normalization: Normalization, changes: list[v2.Transform]) -> Callable[[np.ndarray], Tensor]:
    """uint8 (H, W, 3) → float32 (3, H, W), normalised, `changes` made on the way."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = v2.Compose([*changes, to_float, v2.Normalize(list(normalization.mean), list(normalization.std))])
    return partial(_apply, steps)


def _apply(steps: v2.Transform, image: np.ndarray) -> Tensor:
    return steps(torch.from_numpy(image).permute(2, 0, 1))  # type: ignore[no-any-return]


def _read_npz(path: Path) -> Parts:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.path={path} does not exist: give an .npz with arrays {', '.join(names)}, or a torchvision folder"
        )
    try:
        with np.load(path) as arrays:
            parts = [arrays[name] for name in names]
    except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"dataset.path={path} is not an .npz with arrays {', '.join(names)} ({error})") from error
    for name, images in (("train_images", parts[0]), ("test_images", parts[2])):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"dataset.path={path}: {name} is {images.dtype} {images.shape}, uint8 (N, H, W, 3) is needed"
            )
    for name, images, labels in (("train_labels", parts[0], parts[1]), ("test_labels", parts[2], parts[3])):
        if labels.shape != (len(images),):
            raise ValueError(f"dataset.path={path}: {name} has shape {labels.shape}, ({len(images)},) is needed")
    return parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64)


def _read_torchvision(path: Path, dataset: type[CIFAR10]) -> Parts:
    existed = path.is_dir()
    try:
        absent = not (path / dataset.base_folder).is_dir()
        train = dataset(str(path), train=True, download=absent)
        test = dataset(str(path), train=False)
    except (OSError, RuntimeError) as error:
        if not existed and path.is_dir() and not any(path.iterdir()):
            path.rmdir()  # torchvision made it for the download that failed
        raise FileNotFoundError(
            f"dataset.path={path} holds no {dataset.__name__} and it could not be downloaded ({error}): give "
            f"an .npz, or a folder with {dataset.base_folder}/"
        ) from error
    return train.data, np.asarray(train.targets), test.data, np.asarray(test.targets)
