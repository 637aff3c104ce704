"""Images and labels: what there is, how it is cut into training and test, and how it becomes batches."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from hawq.records import Normalization

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """Raw images of one data set: uint8 (N, H, W, 3) with labels (N,), and a hash of all of it."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def identity(self) -> str:
        """SHA-256 over images and labels."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class ImageData(Protocol):
    """A data set that a config names."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def normalization(self) -> Normalization:
        """Used when a network is trained from scratch; a checkpoint brings its own."""
        ...

    def augmentation(self) -> v2.Transform | None:
        """Acts on a uint8 (3, H, W) training image."""
        ...

    def open(self) -> Splits:
        """Raises FileNotFoundError or ValueError when the data is not there or not as described."""
        ...


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

    def augmentation(self) -> v2.Transform | None:
        return v2.RandomCrop(self.size, padding=self.size // 8) if self.augment else None

    def open(self) -> Splits:
        digits = load_digits()
        grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]  # (N, 1, 8, 8)
        sized = v2.functional.resize(grey, [self.size, self.size], antialias=True)
        images = sized.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
        train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
        return Splits(images[train], digits.target[train], images[test], digits.target[test])


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

    def augmentation(self) -> v2.Transform | None:
        return v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]) if self.augment else None

    def open(self) -> Splits:
        path = Path(self.path)
        return _read_npz(path) if path.suffix == ".npz" else _read_torchvision(path)


def _read_npz(path: Path) -> Splits:
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
    return Splits(parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64))


def _read_torchvision(path: Path) -> Splits:
    existed = path.is_dir()
    try:
        absent = not (path / CIFAR10.base_folder).is_dir()
        train = CIFAR10(str(path), train=True, download=absent)
        test = CIFAR10(str(path), train=False)
    except (OSError, RuntimeError) as error:
        if not existed and path.is_dir() and not any(path.iterdir()):
            path.rmdir()  # torchvision made it for the download that failed
        raise FileNotFoundError(
            f"dataset.path={path} holds no CIFAR-10 and it could not be downloaded ({error}): give an .npz, or a "
            f"folder with {CIFAR10.base_folder}/"
        ) from error
    return Splits(train.data, np.asarray(train.targets), test.data, np.asarray(test.targets))


class Images(Dataset[tuple[Tensor, int]]):
    """Normalised images; an item is asked for by its index, or by (index, seed) to be augmented by that seed."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, normalization: Normalization, augment: v2.Transform | None = None
    ) -> None:
        self._images, self._labels, self._augment = images, labels, augment
        to_float = v2.ToDtype(torch.float32, scale=True)
        self._prepare = v2.Compose([to_float, v2.Normalize(list(normalization.mean), list(normalization.std))])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: Any) -> tuple[Tensor, int]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        image = torch.from_numpy(self._images[index]).permute(2, 0, 1)  # (3, H, W)
        if seed is not None and self._augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image = self._augment(image)
        return self._prepare(image), int(self._labels[index])


class TrainBatches:
    """Shuffled, augmented training batches, a function of (seed, step) alone: order and augmentation of any step can
    be made again after a restart. A last batch that is not full is left out.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, device: torch.device, workers: int = 0) -> None:
        self._images, self._seed, self._device, self._workers = images, seed, device, workers
        self._batch_size = min(batch_size, len(images))

    @property
    def steps_per_epoch(self) -> int:
        return len(self._images) // self._batch_size

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless (images, labels) from `first_step` on."""
        epoch, offset = divmod(first_step, self.steps_per_epoch)
        while True:
            loader = DataLoader(
                self._images,
                batch_sampler=self._epoch(epoch)[offset:],
                num_workers=self._workers,
                pin_memory=self._device.type == "cuda",
            )
            for images, labels in loader:
                yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Batches of (index, augmentation seed) of one epoch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._images), generator=generator).tolist()
        seeds = torch.randint(2**31, (len(order),), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))
        size = self._batch_size
        return [items[begin : begin + size] for begin in range(0, self.steps_per_epoch * size, size)]


def fixed_batches(images: Images, indices: Sequence[int], batch_size: int, device: torch.device) -> list[Batch]:
    """The images at `indices`, not augmented, as a list of batches; the last one may be smaller."""
    chunks = [indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size)]
    batches = [default_collate([images[index] for index in chunk]) for chunk in chunks]
    return [(inputs.to(device), targets.to(device)) for inputs, targets in batches]


def sample_indices(num_images: int, num_samples: int, seed: int) -> list[int]:
    """A random choice without repetition, the same for the same seed."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:num_samples].tolist()
