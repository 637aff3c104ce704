"""What files hold, in one hash: all bytes of a data set of ordinary size, samples of a very large one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

# A warm disk gives 1 to 2 GB/s to SHA-256: up to here a start takes seconds
WHOLE_BYTES = 4 * 2**30
_SAMPLE_BYTES = 4096
_THREADS = 8  # reading waits for the disk, and hashing gives Python's lock away
_GROUP = 512  # files that a thread takes at once


def files_identity(files: Sequence[tuple[str, str]], whole_bytes: int = WHOLE_BYTES) -> str:
    """SHA-256 (hexadecimal) over names and contents of files.

    Beyond `whole_bytes` in all (ImageNet has 150 GB) it is taken over size, time of the last change, and 4 KiB from the
    beginning, the middle and the end of each file: an image that is replaced by another one is noticed all the same,
    and a copy of the data set that keeps these times counts as the same.

    Args:
        files: (name, path) of each, in a fixed order.
        whole_bytes: the most bytes that are read.

    Raises:
        OSError: a file that cannot be read.
    """
    groups = [[path for _, path in files[start : start + _GROUP]] for start in range(0, len(files), _GROUP)]
    with ThreadPoolExecutor(_THREADS) as pool:
        whole = sum(pool.map(_total_bytes, groups)) <= whole_bytes
        digests = [content for made in pool.map(_whole_group if whole else _sampled_group, groups) for content in made]
    digest = hashlib.sha256()
    for (name, _), content in zip(files, digests, strict=True):
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()


def _total_bytes(paths: Sequence[str]) -> int:
    return sum(os.stat(path).st_size for path in paths)


def _whole_group(paths: Sequence[str]) -> list[bytes]:
    """The hash of each file's content."""
    stats = [os.stat(path) for path in paths]
    keys = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats]
    return [_whole(path, key) for path, key in zip(paths, keys, strict=True)]


def _sampled_group(paths: Sequence[str]) -> list[bytes]:
    """The hash of samples of each file."""
    return [_samples(path, os.stat(path)) for path in paths]


@lru_cache(maxsize=1 << 18)  # a sweep opens its data set once for each job
def _whole(path: str, key: tuple[int, ...]) -> bytes:
    """SHA-256 of a file; `key` is what changes with its content."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _samples(path: str, stat: os.stat_result) -> bytes:
    """SHA-256 of a file's size, time of change, and three samples."""
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
    with open(path, "rb", buffering=0) as file:
        for start in (0, (stat.st_size - _SAMPLE_BYTES) // 2, stat.st_size - _SAMPLE_BYTES):
            file.seek(max(start, 0))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def printable(path: str) -> str:
    """A path that can be shown, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
