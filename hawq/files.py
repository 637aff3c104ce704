"""Files that exist completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
from pathlib import Path
from zlib import crc32

from hawq.errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, data: bytes) -> Path:
    """Writes a file through a temporary one beside it, fsynced and renamed: readers see the old file or the new one.

    The temporary file is created new under a random name, so that no link can stand in its place, and is removed when
    anything goes wrong. The file keeps the permissions of the one that it replaces. Temporary files that killed
    processes of this machine left for the same path are removed.

    Args:
        path: of the file; missing folders are made. A link there is replaced, not followed.
        data: its bytes.

    Returns:
        `path`.

    Raises:
        UserError: there is no space left, or the path is a folder.
        OSError: it cannot be written for another reason.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, data, _permissions(path))
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise UserError(f"no space left for {path}: free some and start again") from error
        raise
    return path


def _write_new(path: Path, data: bytes, permissions: int | None) -> None:
    """Writes a file that must not exist yet; `permissions` None are those of any new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666 if permissions is None else 0o600), "wb") as file:
        if permissions is not None:
            os.fchmod(file.fileno(), permissions)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _permissions(path: Path) -> int | None:
    """Those of the regular file at a path, None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return stat.S_IMODE(found.st_mode) if stat.S_ISREG(found.st_mode) else None


def _remove_stale(path: Path) -> None:
    """Removes temporary files for `path` whose processes ran on this machine and are gone."""
    form = re.compile(rf"\.{re.escape(path.name)}\.(?:{_machine()}-)?(\d+)(?:-[0-9a-f]+)?\.tmp")
    for name in os.listdir(path.parent):
        match = form.fullmatch(name)
        if match and not _is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                path.with_name(name).unlink()


def _is_alive(process: int) -> bool:
    """Whether a process exists; in doubt it does."""
    if not 0 < process < 2**31:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _machine() -> str:
    """Tells machines that share a folder apart, in a name of eight digits."""
    return f"{crc32(socket.gethostname().encode()):08x}"
