"""Data sets of pictures of any size, decoded when they are asked for: folders, ImageNet, whatever timm reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, create_dataset, create_transform
from torch import Tensor
from torch.utils.data import IterableDataset

from hawq.components import component
from hawq.data.splits import RawImages, Splits
from hawq.errors import UserError
from hawq.records import Normalization, Preprocessing

_TRAIN, _TEST = ("train",), ("val", "validation", "test")


class ImageFiles:
    """The pictures of one split, RGB, in the order of timm's reader."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Image.Image:
        """Raises UserError for a file that is no picture."""
        try:
            return Image.open(self._reader[index][0]).convert("RGB")
        except OSError as error:
            raise UserError(
                f"{self._reader.filename(index, absolute=True)} cannot be decoded: {error}; mend or remove it"
            ) from error

    def labels(self) -> np.ndarray:
        samples = getattr(self._reader, "samples", None)
        targets = self._reader.iter_targets() if samples is None else (label for _, label in samples)
        return np.fromiter(targets, np.int64, len(self))

    def identity(self) -> str:
        """A hash of what is there: names and sizes of files, or the fingerprint of a Hugging Face data set."""
        samples = getattr(self._reader, "samples", None)
        if samples is None:
            return str(self._reader.dataset._fingerprint)
        digest = hashlib.sha256()
        for place, (path, _) in enumerate(samples):
            digest.update(f"{self._reader.filename(place)} {Path(path).stat().st_size}\n".encode())
        return digest.hexdigest()


class ImagesInMemory(list[Image.Image]):
    """Pictures in memory: what a stream gave, or none at all for a data set that can only evaluate."""

    def identity(self) -> str:
        """A hash of all pixels."""
        digest = hashlib.sha256()
        for picture in self:
            digest.update(str(picture.size).encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _ImageFileData:
    """What all data sets of pictures share: how a picture becomes a network's input, by timm's transforms."""

    normalization = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Image.Image], Tensor]:
        transform: Callable[[Image.Image], Tensor] = create_transform(
            preprocessing.size,
            is_training=augmented and self.augment,  # type: ignore[attr-defined]
            color_jitter=None,  # type: ignore[arg-type]
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop,
            mean=normalization.mean,
            std=normalization.std,
        )
        return transform


@component("dataset/imagefolder", not_in_key=("path",))
@dataclass(frozen=True)
class ImageFolder(_ImageFileData):
    """A folder with train/<class>/* and val/<class>/* (or validation/, test/); classes in the order of their names.

    Args:
        path: the folder; without train/ it can only evaluate.
        augment: random crops and mirroring of training pictures.
    """

    path: str
    augment: bool = True
    name = "imagefolder"
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"

    def open(self) -> Splits:
        train, test = (self._part(names) for names in (_TRAIN, _TEST))
        if test is None:
            raise FileNotFoundError(
                f"dataset.path={self.path} holds no pictures for {self.name}: a folder with {self.layout} is needed "
                "(without train/ it can only evaluate, with stages=[])"
            )
        classes = self.classes(train or test)
        for part in filter(None, (train, test)):
            unknown = sorted(place.name for place in part.iterdir() if place.is_dir() and place.name not in classes)
            if unknown:
                raise ValueError(f"{part} has folders that are no classes of {self.name}: {', '.join(unknown[:5])}")
        indices = {name: index for index, name in enumerate(classes)}
        nothing = ImagesInMemory(), np.zeros(0, np.int64)
        read = [_read(name="", root=str(part), class_map=indices) if part else nothing for part in (train, test)]
        (train_pictures, train_labels), (test_pictures, test_labels) = read
        return Splits(train_pictures, train_labels, test_pictures, test_labels, len(classes))

    def classes(self, part: Path) -> list[str]:
        """Names of the classes in the order of their labels."""
        return sorted(place.name for place in part.iterdir() if place.is_dir())

    def _part(self, names: Iterable[str]) -> Path | None:
        folders = (Path(self.path) / name for name in names)
        return next((folder for folder in folders if folder.is_dir()), None)


@component("dataset/imagenet", not_in_key=("path",))
@dataclass(frozen=True)
class ImageNet(ImageFolder):
    """ILSVRC2012 as folders; a label is the place of its wnid among all 1000, however many classes are there."""

    name = "imagenet"
    layout = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, <wnid> such as n01440764,"

    def classes(self, part: Path) -> list[str]:
        return list(ImageNetInfo("imagenet-1k").label_names())


@component("dataset/timm", not_in_key=("path",))
@dataclass(frozen=True)
class TimmData(_ImageFileData):
    """Any data set that timm's `create_dataset` reads, say hfds/uoft-cs/cifar100 (Hugging Face).

    A stream (wds/, hfids/) is read into memory once, because batches are drawn by index.

    Args:
        name: name with timm's prefix.
        path: folder of the data or of its cache, or None.
        train_split, test_split: names of the splits there.
        num_classes: outputs of the network.
        augment: random crops and mirroring of training pictures.

    Raises:
        ValueError: fewer than two classes; `open`: a name that timm cannot read.
    """

    name: str
    num_classes: int
    path: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    augment: bool = True

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"dataset.num_classes={self.num_classes} is out of range: give 2 or more")

    def open(self) -> Splits:
        train, test = (
            _read(name=self.name, root=self.path, split=split) for split in (self.train_split, self.test_split)
        )
        return Splits(*train, *test, self.num_classes)


def _read(**request: Any) -> tuple[RawImages, np.ndarray]:
    """Pictures and labels of one split. Raises ValueError, with timm's reason, when they cannot be read."""
    try:
        dataset = create_dataset(**request)
        if isinstance(dataset, IterableDataset):
            pairs = list(dataset)
            return ImagesInMemory(picture for picture, _ in pairs), np.array([label for _, label in pairs], np.int64)
        pictures = ImageFiles(dataset.reader)
        return pictures, pictures.labels()
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError) as error:
        wanted = request["name"] or request["root"]
        raise ValueError(f"dataset {wanted} could not be read: {str(error) or repr(error)}") from error
