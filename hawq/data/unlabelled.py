"""A user's own images without labels: an array, or a folder of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hawq.data.image_files import ImageFiles
from hawq.data.listing import find_images_below
from hawq.data.splits import RawImages

_ARRAY = "images"


def open_unlabelled(path: str, like: RawImages) -> RawImages:
    """The images at a path, stored as those of a data set are, so that its `prepare` takes them.

    Args:
        path: a folder of image files, an .npy of uint8 (N, H, W, 3), or an .npz with such an array `images`.
        like: images of the data set.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no images, or an array of another type or shape.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"images={path} does not exist: give train, held_out, a folder of images, .npy or .npz")
    found: Any = ImageFiles(find_images_below(path), path) if place.is_dir() else _read_array(place)
    if not len(found):
        raise ValueError(f"images={path} has no images: give at least two")
    arrays = isinstance(like, np.ndarray)
    return found if isinstance(found, np.ndarray) == arrays else Converted(found, arrays)


def _read_array(path: Path) -> np.ndarray:
    """uint8 (N, H, W, 3). Raises ValueError for anything else."""
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded[_ARRAY] if hasattr(loaded, "files") else loaded
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"images={path} cannot be read ({reason}): give an .npy, an .npz with an array {_ARRAY}, or a folder"
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"images={path} holds {array.dtype} {array.shape}: uint8 (N, H, W, 3) is needed")
    return np.ascontiguousarray(array)


class Converted:
    """Images in the form that a data set stores: arrays (H, W, 3) instead of PIL images, or the other way round.

    Args:
        images: in the other form.
        arrays: whether arrays are wanted.
    """

    def __init__(self, images: RawImages, arrays: bool) -> None:
        self._images, self._arrays = images, arrays

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        """One image. Raises UserError where it cannot be decoded."""
        from PIL import Image

        image = self._images[index]
        return np.array(image, np.uint8) if self._arrays else Image.fromarray(image)


class Chosen:
    """Some of the images of a data set.

    Args:
        images: all of them.
        indices: of those that are chosen, in order.
    """

    def __init__(self, images: RawImages, indices: np.ndarray) -> None:
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        """One image. Raises UserError where it cannot be decoded."""
        return self._images[int(self._indices[index])]

    def identity(self) -> str:
        """A hash of all images, and which of them these are."""
        import hashlib

        whole: Any = self._images
        return hashlib.sha256(whole.identity().encode() + self._indices.tobytes()).hexdigest()


def chosen(images: RawImages, indices: np.ndarray) -> RawImages:
    """The images at some indices (N,), as an array where they are one."""
    return images[indices] if isinstance(images, np.ndarray) else Chosen(images, indices)
