"""Downloading an archive: told, with its progress, checked, and unpacked in one step."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_TIMEOUT = 60  # seconds without a byte
_PIECE = 1 << 18


def download(url: str, folder: Path, md5: str) -> None:
    """Downloads a tar archive and puts the folder of this name that it holds in place, all of it or nothing.

    Several processes may ask for the same folder at once: one of them downloads, the others wait for it.

    Args:
        url: of the archive.
        folder: where its only folder is to be, under the same name; what is missing above it is made.
        md5: checksum of the archive, hexadecimal.

    Raises:
        OSError: no connection, no space, another checksum, or no such folder in the archive.
    """
    existed = folder.parent.is_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder.parent):
            if not folder.is_dir():
                _download(url, folder, md5)
    finally:
        if not existed and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _download(url: str, folder: Path, md5: str) -> None:
    work = folder.parent / f".{folder.name}.part"
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir()
    try:
        archive = work / "archive"
        found = _fetch(url, archive, folder.name)
        if found != md5:
            raise OSError(f"{url} has the MD5 {found}, and {md5} is right: try again")
        with tarfile.open(archive) as tar:
            tar.extractall(work / "content", filter="data")
        (work / "content" / folder.name).rename(folder)
        logger.info("%s is there", folder)
    except (tarfile.TarError, EOFError) as error:
        raise OSError(f"{url} is not a tar archive: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(url: str, path: Path, name: str) -> str:
    """Writes what `url` holds into a file and returns its MD5; every tenth of it is logged."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as source, path.open("xb") as file:
        total = int(source.headers.get("Content-Length") or 0)
        logger.info("downloading %s (%.0f MB) from %s into %s", name, total / 1e6, url, path.parents[1])
        done = told = 0
        while piece := source.read(_PIECE):
            file.write(piece)
            digest.update(piece)
            done += len(piece)
            if total and done * 10 // total > told:
                told = done * 10 // total
                logger.info("downloading %s: %d %% of %.0f MB", name, 10 * told, total / 1e6)
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is at work in this folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
