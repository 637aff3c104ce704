"""Stored images of any size: files that are decoded on demand, or images held in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hawq.data.decoding import decode
from hawq.data.file_identity import files_identity, printable
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
