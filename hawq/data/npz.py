"""Reading a data set from an `.npz` of four arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def read_npz(path: Path) -> Parts:
    """Training images, training labels, test images and test labels of an `.npz`: uint8 (N, H, W, 3) and int64 (N,).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz` of these arrays, or arrays of another type or shape.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"path={path} does not exist: give an .npz with arrays {', '.join(_NAMES)}, or a torchvision folder"
        )
    try:
        with np.load(path) as arrays:
            parts = [arrays[name] for name in _NAMES]
    except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"path={path} is not an .npz with arrays {', '.join(_NAMES)} ({error})") from error
    for name, images in (("train_images", parts[0]), ("test_images", parts[2])):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"path={path}: {name} is {images.dtype} {images.shape}, uint8 (N, H, W, 3) is needed")
    for name, images, labels in (("train_labels", parts[0], parts[1]), ("test_labels", parts[2], parts[3])):
        if labels.shape != (len(images),):
            raise ValueError(f"path={path}: {name} has shape {labels.shape}, ({len(images)},) is needed")
    return parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64)
