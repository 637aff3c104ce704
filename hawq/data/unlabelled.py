"""A user's own images without labels, an array or a folder of files, in the form in which a data set stores its own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hawq.data.image_files import ImageFiles
from hawq.data.listing import images_below
from hawq.data.splits import RawImages, identity_of

_ARRAY = "images"


class StoredImages(Protocol):
    """Images that a data set's `prepare` takes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """One image: uint8 (H, W, 3), or a PIL image in RGB. Raises UserError where it cannot be decoded."""
        ...

    def identity(self) -> str:
        """SHA-256 (hexadecimal) of their contents."""
        ...


def open_unlabelled(path: str, like: RawImages) -> StoredImages:
    """The images at a path, stored as those of a data set are.

    Args:
        path: a folder with image files in it or below it, in the natural order of their paths; an .npy of uint8
            (N, H, W, 3); or an .npz with such an array `images`.
        like: images of the data set. Where these are arrays, each file is cropped to their proportions and scaled to
            their size; else the transforms of the data set do what is needed.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no images, or an array of another type or shape.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"images={path} does not exist: give a folder of image files, an .npy or an .npz")
    first = like[0]
    found: StoredImages = (
        _Files(place, first) if place.is_dir() else _Array(_read(place), isinstance(first, np.ndarray))
    )
    if not len(found):
        raise ValueError(f"images={path} holds no image that Pillow reads: give a folder with image files")
    return found


class _Files:
    """Every image file below a folder, decoded on demand."""

    def __init__(self, folder: Path, like: Any) -> None:
        self._files = ImageFiles(images_below(str(folder)), str(folder))
        self._shape = like.shape[:2] if isinstance(like, np.ndarray) else None  # (H, W)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        image = self._files[index]
        if self._shape is None:
            return image
        from PIL import ImageOps

        height, width = self._shape
        return np.array(ImageOps.fit(image, (width, height)), dtype=np.uint8)

    def identity(self) -> str:
        return self._files.identity()


class _Array:
    """uint8 (N, H, W, 3), as arrays or as PIL images."""

    def __init__(self, array: np.ndarray, as_arrays: bool) -> None:
        self._array, self._as_arrays = array, as_arrays

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self._array[index] if self._as_arrays else Image.fromarray(self._array[index])

    def identity(self) -> str:
        return identity_of(self._array)


def _read(path: Path) -> np.ndarray:
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
        whole: Any = self._images
        return hashlib.sha256(whole.identity().encode() + self._indices.tobytes()).hexdigest()


def chosen(images: RawImages, indices: np.ndarray) -> RawImages:
    """The images at some indices (N,), as an array where they are one."""
    return images[indices] if isinstance(images, np.ndarray) else Chosen(images, indices)
