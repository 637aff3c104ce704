"""Folders of image files, one folder for each class; ImageNet is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hawq.components import component
from hawq.data.file_identity import printable
from hawq.data.image_files import IMAGENET, ImageFiles, ImagesInMemory, timm_transform
from hawq.data.listing import class_folders, find_images
from hawq.data.splits import RawImages, Splits
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_TRAIN, _TEST = ("train",), ("val", "validation", "test")


@component("dataset/imagefolder", not_in_key=("path",))
@dataclass(frozen=True)
class ImageFolder:
    """A folder with train/<class>/* and val/<class>/* (or validation/, test/); classes in the order of their names.

    Every file that Pillow decodes is read; others are named in a warning.

    Args:
        path: the folder; without train/ it can only evaluate.
        augment: random crop and horizontal flip of training images.
    """

    path: str
    augment: bool = True
    name = "imagefolder"
    normalization = IMAGENET
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Image], Tensor]:
        """RGB image → float32 (3, size, size), by timm's transforms; see `ImageData.prepare`."""
        return timm_transform(preprocessing, normalization, augmented=augmented and self.augment)

    def open(self) -> Splits:
        """Finds all files; images are decoded on demand.

        Raises:
            FileNotFoundError: no folder of test images.
            ValueError: a folder that is not a class, or one whose files are not images.
        """
        train, test = (self._part(names) for names in (_TRAIN, _TEST))
        if test is None:
            raise FileNotFoundError(
                f"path={self.path} holds no images for {self.name}: a folder with {self.layout} is needed "
                "(without train/ it can only evaluate, with stages=[])"
            )
        classes = self.classes(train or test)
        indices = {name: index for index, name in enumerate(classes)}
        for part in filter(None, (train, test)):
            unknown = [printable(name) for name in class_folders(str(part)) if name not in indices]
            if unknown:
                raise ValueError(f"{part} has folders that are not classes of {self.name}: {', '.join(unknown[:5])}")
        (train_images, train_labels), (test_images, test_labels) = (_read(part, indices) for part in (train, test))
        return Splits(train_images, train_labels, test_images, test_labels, len(classes))

    def classes(self, part: Path) -> list[str]:
        """Names of the classes, in the order of their labels, given the folder of one split."""
        return class_folders(str(part))

    def _part(self, names: Iterable[str]) -> Path | None:
        folders = (Path(self.path) / name for name in names)
        return next((folder for folder in folders if folder.is_dir()), None)


def _read(part: Path | None, classes: Mapping[str, int]) -> tuple[RawImages, np.ndarray]:
    """Images and labels (N,) of one split; none of a split that is not there."""
    if part is None:
        return ImagesInMemory(), np.zeros(0, np.int64)
    paths, labels = zip(*find_images(str(part), classes), strict=True)
    return ImageFiles(paths, str(part)), np.asarray(labels, np.int64)


@component("dataset/imagenet", not_in_key=("path",))
@dataclass(frozen=True)
class ImageNet(ImageFolder):
    """ILSVRC2012 as folders; a label is the place of its wnid among all 1000, however many classes are present."""

    name = "imagenet"
    layout = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, <wnid> such as n01440764,"

    def classes(self, part: Path) -> list[str]:
        """All 1000 wnids, whatever `part` holds."""
        from timm.data import ImageNetInfo

        return list(ImageNetInfo("imagenet-1k").label_names())
