"""Stored images of any size: files that are decoded on demand, or images held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.data.splits import RawImages
from hawq.errors import UserError
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# ImageNet's mean and std (timm's IMAGENET_DEFAULT_MEAN and _STD)
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFiles:
    """The image files of one split, in the order of timm's reader.

    Args:
        reader: a reader of timm: by index an open file and its label.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Image:
        """One image in RGB. Raises UserError for a file that is not an image."""
        from PIL import Image

        try:
            return Image.open(self._reader[index][0]).convert("RGB")
        except OSError as error:
            raise UserError(
                f"{self._reader.filename(index, absolute=True)} cannot be decoded: {error}; repair or remove it"
            ) from error

    def labels(self) -> np.ndarray:
        """int64 (N,)."""
        samples = getattr(self._reader, "samples", None)
        targets = self._reader.iter_targets() if samples is None else (label for _, label in samples)
        return np.fromiter(targets, np.int64, len(self))

    def identity(self) -> str:
        """A hash of names and sizes of all files, or the fingerprint of a Hugging Face data set."""
        samples = getattr(self._reader, "samples", None)
        if samples is None:
            return str(self._reader.dataset._fingerprint)
        digest = hashlib.sha256()
        for place, (path, _) in enumerate(samples):
            digest.update(f"{self._reader.filename(place)} {Path(path).stat().st_size}\n".encode())
        return digest.hexdigest()


class ImagesInMemory(list["Image"]):
    """Images held in memory: what a stream yielded, or none for a data set that can only evaluate."""

    def identity(self) -> str:
        """SHA-256 over sizes and pixels of all images."""
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


def read_with_timm(**request: Any) -> tuple[RawImages, np.ndarray]:
    """Images and labels of one split, as timm's `create_dataset(**request)` finds them; a stream is read into memory.

    Raises ValueError, with timm's reason, where they cannot be read.
    """
    from timm.data import create_dataset
    from torch.utils.data import IterableDataset

    try:
        dataset = create_dataset(**request)
        if isinstance(dataset, IterableDataset):
            pairs = list(dataset)
            return ImagesInMemory(image for image, _ in pairs), np.array([label for _, label in pairs], np.int64)
        images = ImageFiles(dataset.reader)
        return images, images.labels()
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError) as error:
        wanted = request["name"] or request["root"]
        raise ValueError(f"dataset {wanted} could not be read: {str(error) or repr(error)}") from error
