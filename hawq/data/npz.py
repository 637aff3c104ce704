"""Reading a data set from an `.npz` of four arrays, each checked by its header before it is read."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hawq.data.splits import check_labels

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_HEADER = 2 * 10_000  # bytes: numpy's own limit of a header, and what stands before it


def read_npz(path: Path, num_classes: int) -> Parts:
    """Training images, training labels, test images and test labels of an `.npz`: uint8 (N, H, W, 3) and int64 (N,).

    Args:
        path: the file.
        num_classes: labels are 0 … num_classes − 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz` of these arrays; arrays of another type or shape, larger than this machine's memory,
            or of another size than their headers say; images of several sizes; no test images; labels out of range.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"path={path} does not exist: give an .npz with arrays {', '.join(_NAMES)}, or a torchvision folder"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {name: _header(archive, name) for name in _NAMES}
            _check_headers(path, headers)
            train_images, train_labels, test_images, test_labels = (_array(archive, name) for name in _NAMES)
    except (
        *(KeyError, OSError, EOFError, TypeError, SyntaxError, RuntimeError, NotImplementedError, OverflowError),
        *(zipfile.BadZipFile, zlib.error, _Unreadable),
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"path={path} is not an .npz with arrays {', '.join(_NAMES)} ({reason})") from error
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        check_labels(f"path={path}: {name}", labels, num_classes)
    return train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64)


class _Unreadable(Exception):
    """What numpy says of a member that is not an array."""


Header = tuple[tuple[int, ...], np.dtype]


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    """Shape and type of an array, as far as they agree with the size of the member that holds it."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        except ValueError as error:
            raise _Unreadable(f"{name}: {error}") from error
    stored = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and not stored < info.file_size <= stored + _HEADER:
        raise _Unreadable(f"{name} has {info.file_size:,} bytes, and its header says {stored:,}")
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        try:
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        except ValueError as error:
            raise _Unreadable(f"{name}: {error}") from error
    return array


def _check_headers(path: Path, headers: dict[str, Header]) -> None:
    """Raises ValueError for arrays that are not a data set."""
    for part in ("train", "test"):
        images, dtype = headers[f"{part}_images"]
        if dtype != np.uint8 or len(images) != 4 or images[-1] != 3 or 0 in images[1:]:
            raise ValueError(f"path={path}: {part}_images is {dtype} {images}, uint8 (N, H, W, 3) is needed")
        labels, dtype = headers[f"{part}_labels"]
        if dtype.kind not in "iu":
            raise ValueError(f"path={path}: {part}_labels is {dtype}: whole numbers are needed")
        if labels != (images[0],):
            raise ValueError(f"path={path}: {part}_labels has shape {labels}, ({images[0]},) is needed")
    train, test = headers["train_images"][0], headers["test_images"][0]
    if train[1:] != test[1:]:
        raise ValueError(f"path={path}: train_images is {train} and test_images {test}: images of one size are needed")
    if not test[0]:
        raise ValueError(f"path={path}: test_images is empty: at least one image is needed")
    needed, there = math.prod(train) + math.prod(test), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ValueError(
            f"path={path}: its images need {needed / 2**30:.1f} GiB and this machine has {there / 2**30:.1f} GiB of "
            "memory: give fewer, or a folder of image files with dataset=imagefolder"
        )
