"""Folders of image files, one folder for each class; ImageNet is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hawq.components import component
from hawq.data.image_files import IMAGENET, ImagesInMemory, read_with_timm, timm_transform
from hawq.data.splits import Splits
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_TRAIN, _TEST = ("train",), ("val", "validation", "test")


@component("dataset/imagefolder", not_in_key=("path",))
@dataclass(frozen=True)
class ImageFolder:
    """A folder with train/<class>/* and val/<class>/* (or validation/, test/); classes in the order of their names.

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
            ValueError: a folder that is not a class, or files that cannot be listed.
        """
        train, test = (self._part(names) for names in (_TRAIN, _TEST))
        if test is None:
            raise FileNotFoundError(
                f"path={self.path} holds no images for {self.name}: a folder with {self.layout} is needed "
                "(without train/ it can only evaluate, with stages=[])"
            )
        classes = self.classes(train or test)
        for part in filter(None, (train, test)):
            unknown = sorted(place.name for place in part.iterdir() if place.is_dir() and place.name not in classes)
            if unknown:
                raise ValueError(f"{part} has folders that are not classes of {self.name}: {', '.join(unknown[:5])}")
        indices = {name: index for index, name in enumerate(classes)}
        nothing = ImagesInMemory(), np.zeros(0, np.int64)
        read = [
            read_with_timm(name="", root=str(part), class_map=indices) if part else nothing for part in (train, test)
        ]
        (train_images, train_labels), (test_images, test_labels) = read
        return Splits(train_images, train_labels, test_images, test_labels, len(classes))

    def classes(self, part: Path) -> list[str]:
        """Names of the classes, in the order of their labels, given the folder of one split."""
        return sorted(place.name for place in part.iterdir() if place.is_dir())

    def _part(self, names: Iterable[str]) -> Path | None:
        folders = (Path(self.path) / name for name in names)
        return next((folder for folder in folders if folder.is_dir()), None)


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
