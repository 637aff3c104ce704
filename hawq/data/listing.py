"""Finding the image files below the folders of classes, and telling what is left out."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from hawq.data.file_identity import printable

logger = logging.getLogger(__name__)

_STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")  # Pillow knows them without decoding them by itself
_SHOWN = 5  # names in a message


def find_images(part: str, classes: Mapping[str, int]) -> list[tuple[str, int]]:
    """(path, label) of every image file below the class folders of one split, in the natural order of their paths.

    A file is an image when Pillow reads its ending, in any case of letters, or else its first bytes. Others, hidden
    ones, and those outside of a class folder are left out and named in a warning, and so is a class without any file.

    Args:
        part: folder of the split.
        classes: name of every class folder → label.

    Raises:
        ValueError: no images at all, or a class folder whose files are all left out.
    """
    found, left_out = [], []
    for entry in sorted(os.scandir(part), key=lambda entry: entry.name):
        if entry.name not in classes or not entry.is_dir():
            left_out.append(entry.path)
            continue
        images, others = _sorted_out(entry.path)
        found += [(path, classes[entry.name]) for path in images]
        left_out += others
        if others and not images:
            raise ValueError(
                f"{printable(entry.path)} has {len(others)} files but no image that Pillow reads ({_named(others)}): "
                "convert them, or remove the folder"
            )
        if not images:
            logger.warning("%s is a class without images", printable(entry.path))
    if left_out:
        _warn_left_out(part, left_out)
    if not found:
        raise ValueError(f"{printable(part)} has no images: give a folder with images in a folder for each class")
    return sorted(found, key=lambda pair: _natural(pair[0]))


def images_below(folder: str) -> list[str]:
    """Paths of all image files below a folder, in natural order; other files are named in a warning."""
    images, others = _sorted_out(folder)
    if others:
        logger.warning(
            "%s: left out, as they are no images: %d files (%s)", printable(folder), len(others), _named(others)
        )
    return sorted(images, key=_natural)


def class_folders(part: str) -> list[str]:
    """Names of the folders of one split that are not hidden, sorted."""
    return sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))


def note_left_out(folder: str, read: Iterable[str]) -> None:
    """Warns of the files below a folder that are not among the paths that were `read`."""
    known = set(read)
    left_out = [entry.path for entry in _entries(folder, set()) if entry.path not in known]
    if left_out:
        _warn_left_out(folder, left_out)


def _warn_left_out(folder: str, paths: list[str]) -> None:
    logger.warning(
        "%s: left out, as they are no images of a class: %d files or folders (%s)",
        *(printable(folder), len(paths), _named(paths)),
    )


def _sorted_out(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the images and of all other files below a folder."""
    images: list[str] = []
    others: list[str] = []
    for entry in _entries(folder, set()):
        (images if _is_image(entry) else others).append(entry.path)
    return images, others


def _entries(folder: str, seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is not a folder, through links too, and each folder once."""
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _entries(entry.path, seen)
        else:
            yield entry


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or not entry.is_file():  # a pipe would never end
        return False
    if os.path.splitext(entry.name)[1].lower() in endings():
        return True
    from PIL import Image

    try:
        with Image.open(entry.path) as image:  # reads the header only
            return image.format not in _STUBS
    except Exception:  # whatever a plugin makes of a file that is not meant for it
        return False


@cache
def endings() -> frozenset[str]:
    """Endings of the files that Pillow decodes, in small letters, with their dot."""
    from PIL import Image

    formats = Image.registered_extensions()
    return frozenset(ending for ending, name in formats.items() if name in Image.OPEN and name not in _STUBS)


def _natural(path: str) -> list[str | int]:
    """A key that sorts img2 before img10, as timm does."""
    pieces = re.split(r"(\d+)", path.lower())  # every second one is a number
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)]


def _named(paths: list[str]) -> str:
    shown = ", ".join(printable(os.path.basename(path)) for path in paths[:_SHOWN])
    return f"{shown} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else shown
