"""Stored images of any size: files that are decoded on demand, or images held in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.data.decoding import decode, to_rgb
from hawq.data.file_identity import files_identity, printable
from hawq.data.splits import RawImages
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# ImageNet's mean and std (timm's IMAGENET_DEFAULT_MEAN and _STD)
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFiles:
    """Image files that are decoded on demand.

    Args:
        paths: of the files.
        root: the folder that `identity` names them from, so that a data set may be moved.
    """

    def __init__(self, paths: Sequence[str], root: str) -> None:
        self._paths, self._root = paths, root

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image:
        """One image in RGB. Raises UserError for a file that cannot be decoded."""
        return decode(self._paths[index], printable(self._paths[index]))

    def identity(self) -> str:
        """SHA-256 (hexadecimal) over names and contents of all files; see `files_identity`."""
        return files_identity([(os.path.relpath(path, self._root), path) for path in self._paths])


class ReaderImages:
    """The images of a reader of timm, decoded on demand, say of an archive or of Hugging Face.

    Args:
        reader: by index an open file and its label.
        identity: a hash of what it reads.
    """

    def __init__(self, reader: Any, identity: Callable[[], str]) -> None:
        self._reader, self.identity = reader, identity

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Image:
        """One image in RGB. Raises UserError for a file that cannot be decoded."""
        return decode(self._reader[index][0], printable(str(self._reader.filename(index, absolute=True))))


class ImagesInMemory(list["Image"]):
    """RGB images held in memory: what a stream yielded, or none for a data set that can only evaluate."""

    def identity(self) -> str:
        """SHA-256 (hexadecimal) over sizes and pixels of all images."""
        digest = hashlib.sha256()
        for image in self:
            digest.update(str(image.size).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()


def timm_transform(
    preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool
) -> Callable[[Image], Tensor]:
    """timm's transform of an RGB image to a network's input, float32 (3, size, size).

    Args:
        preprocessing: side in pixels, share that is cropped, interpolation.
        normalization: mean and std for each channel of an image in 0 … 1.
        augmented: random crop and horizontal flip instead of resizing and a centre crop.
    """
    from timm.data import create_transform

    transform: Callable[[Image], Tensor] = create_transform(
        preprocessing.size,
        is_training=augmented,
        color_jitter=None,  # type: ignore[arg-type]
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop,
        mean=normalization.mean,
        std=normalization.std,
    )
    return transform


def read_with_timm(name: str, root: str | None, split: str) -> tuple[RawImages, np.ndarray]:
    """Images and labels (N,) of one split, as timm's `create_dataset` finds them; a stream is read into memory.

    Raises ValueError, with timm's reason, where they cannot be read.
    """
    from timm.data import create_dataset

    try:
        return _read(create_dataset(name=name, root=root, split=split, input_img_mode=""))
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"dataset {name or root} could not be read: {reason}") from error


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
    return ImageFiles(paths, reader.root), np.array([label for _, label in reader.samples], np.int64)


def _in_memory(pairs: Iterable[tuple[Any, Any]]) -> tuple[RawImages, np.ndarray]:
    """All of a stream of PIL images and labels."""
    images, labels = ImagesInMemory(), []
    for image, label in pairs:
        images.append(to_rgb(image))
        labels.append(label)
    return images, np.asarray(labels, np.int64)
