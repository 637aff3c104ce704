"""Any data set that timm reads, say from Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.checks import check_range
from hawq.components import component
from hawq.data.decoding import to_rgb
from hawq.data.file_identity import files_identity
from hawq.data.image_files import IMAGENET, ImageFiles, ImagesInMemory, ReaderImages, timm_transform
from hawq.data.listing import endings, note_left_out
from hawq.data.splits import RawImages, Splits
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_MAX_CLASSES = 1_000_000
_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


@component("dataset/timm", not_in_key=("path",))
@dataclass(frozen=True)
class TimmData:
    """Any data set that timm's `create_dataset` reads, say hfds/uoft-cs/cifar100 (Hugging Face).

    A stream (wds/, hfids/) is read into memory once, because batches are drawn by index.

    Args:
        name: name with timm's prefix.
        num_classes: outputs of the network, 2 to 1,000,000.
        path: folder of the data or of its cache, or None.
        train_split, test_split: names of the splits there.
        augment: random crop and horizontal flip of training images.

    Raises:
        ValueError: `num_classes` out of range.
    """

    name: str
    num_classes: int
    path: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    augment: bool = True
    normalization = IMAGENET

    def __post_init__(self) -> None:
        check_range("num_classes", self.num_classes, least=2, most=_MAX_CLASSES)

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Image], Tensor]:
        """RGB image → float32 (3, size, size), by timm's transforms; see `ImageData.prepare`."""
        return timm_transform(preprocessing, normalization, augmented=augmented and self.augment)

    def open(self) -> Splits:
        """Images and labels of both splits. Raises ValueError for a name that timm cannot read, or other labels."""
        train, test = (read_with_timm(self.name, self.path, split) for split in (self.train_split, self.test_split))
        return Splits(*train, *test, self.num_classes)


def read_with_timm(name: str, root: str | None, split: str) -> tuple[RawImages, np.ndarray]:
    """Images and labels (N,) of one split, as timm's `create_dataset` finds them; a stream is read into memory.

    Raises ValueError, with timm's reason, where they cannot be read.
    """
    from timm.data import create_dataset

    try:
        return _read(create_dataset(name=name, root=root, split=split, input_img_mode="", **_every_ending(name, root)))
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"dataset {name or root} could not be read: {reason}") from error


def _every_ending(name: str, root: str | None) -> dict[str, Any]:
    """What makes timm read every file of a folder that Pillow decodes; by itself it takes .png, .jpg and .jpeg."""
    is_folder = name.partition("/")[0].lower() not in _PREFIXES and root is not None and os.path.isdir(root)
    return {"input_key": ";".join(sorted(endings()))} if is_folder else {}


def _read(dataset: Any) -> tuple[RawImages, np.ndarray]:
    """Images and labels of a data set of timm or torchvision."""
    reader = getattr(dataset, "reader", None)
    if reader is None or not hasattr(reader, "__getitem__"):
        return _in_memory(dataset)
    if hasattr(reader, "iter_targets"):  # of Hugging Face, whose fingerprint stands for the content
        labels = np.fromiter(reader.iter_targets(), np.int64, len(reader))
        return ReaderImages(reader, partial(str, reader.dataset._fingerprint)), labels
    if hasattr(reader, "targets"):  # an archive
        archives = [os.path.join(reader.root, name or "") for name in sorted({fn or "" for _, fn, _ in reader.samples})]
        identity = partial(files_identity, [(os.path.basename(path), path.rstrip("/")) for path in archives])
        return ReaderImages(reader, identity), np.asarray(reader.targets, np.int64)
    paths = [path for path, _ in reader.samples]
    note_left_out(reader.root, paths)
    return ImageFiles(paths, reader.root), np.array([label for _, label in reader.samples], np.int64)


def _in_memory(pairs: Iterable[tuple[Any, Any]]) -> tuple[RawImages, np.ndarray]:
    """All of a stream of PIL images and labels."""
    images, labels = ImagesInMemory(), []
    for image, label in pairs:
        images.append(to_rgb(image))
        labels.append(label)
    return images, np.asarray(labels, np.int64)
