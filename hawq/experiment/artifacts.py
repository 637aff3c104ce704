"""Artifacts: stage results under a key of everything they depend on, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.errors import UserError
from hawq.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_SCHEMA = "hawq.artifact/1"
_SPENT = "spent_seconds"


def fingerprint(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-ready value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values of a state dict."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> Path:
    """A JSON-ready value, indented, as a whole file."""
    return write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds a lock file for this process; another one that wants it waits, after a call of `waiting`.

    A link in its place is not followed. Raises UserError for one.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, which a lock must not follow: remove it") from error
        raise
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Artifact:
    """One artifact: a folder of files that counts only once its manifest, written last, names and certifies them."""

    def __init__(self, path: Path, stage: str, key: str) -> None:
        self.path, self.stage, self.key = path, stage, key
        self.partial = PartialCheckpoint(path)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a finished artifact, all files verified; None when it is not finished.

        Raises UserError naming the file that is damaged or foreign; nothing is deleted.
        """
        path = self.path / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
            schema, stage, key = (manifest[name] for name in ("schema", "stage", "key"))
            checksums = [(self.path / name, checksum) for name, checksum in manifest["files"].items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): move it away and run the same command again") from error
        if (schema, stage, key) != (_SCHEMA, self.stage, self.key):
            raise UserError(
                f"{path} is not this stage's artifact (found {schema} {stage} {key}, expected {_SCHEMA} {self.stage} "
                f"{self.key}): move it away and run the same command again"
            )
        for file, checksum in checksums:
            self._verify(file, checksum)
        return manifest

    @staticmethod
    def _verify(path: Path, expected: str) -> None:
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise UserError(
                f"{path} is missing or damaged (its checksum is not the stored one): move the folder "
                f"{path.parent} away and run the same command again"
            )

    def finish(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Writes all files, then the manifest with `facts`, then drops the half-done state."""
        for name, data in files.items():
            write_whole(self.path / name, data)
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        header = {"schema": _SCHEMA, "stage": self.stage, "key": self.key, "files": checksums}
        write_json(self.path / MANIFEST, header | dict(facts))
        self.partial.clear()

    def files(self) -> list[Path]:
        """The files that the manifest of a finished artifact names."""
        manifest = self.manifest()
        return [self.path / name for name in manifest["files"]] if manifest else []

    def read_json(self, name: str) -> Any:
        """One of its files, parsed."""
        return json.loads((self.path / name).read_text())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the artifact for this process; another one that wants the same key waits."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / ".lock"):
            yield


class PartialCheckpoint:
    """The newest half-done state of a stage, in a file whose name holds its own checksum.

    `earlier_seconds` is what the state that `load` found had taken, in all processes that worked on it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.earlier_seconds, self._begun = 0.0, time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("progress-*.pt"))

    def save(self, state: dict[str, Any]) -> None:
        """Writes the new state whole, and only then removes the older one."""
        import torch

        older = self._files()
        buffer = io.BytesIO()
        torch.save({**state, _SPENT: self.earlier_seconds + time.monotonic() - self._begun}, buffer)
        data = buffer.getvalue()
        number = max((int(path.stem.split("-")[1]) for path in older), default=0) + 1
        name = f"progress-{number:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
        write_whole(self._folder / name, data)
        for path in older:
            path.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest state, or None. Raises UserError naming a damaged file."""
        import torch

        self.earlier_seconds, self._begun = 0.0, time.monotonic()
        files = self._files()
        if not files:
            return None
        data = files[-1].read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != files[-1].stem.split("-")[2]:
            raise UserError(f"{files[-1]} is damaged: move it away and run the same command again")
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise UserError(f"{files[-1]} cannot be read ({error}): move it away and run again") from error
        self.earlier_seconds = state.pop(_SPENT, 0.0)
        return state

    def clear(self) -> None:
        """Removes all states: the stage is done."""
        for path in self._files():
            path.unlink()


class Store:
    """All artifacts below one folder: <root>/<stage>/<key>/."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def artifact(self, stage: str, facts: Mapping[str, Any]) -> Artifact:
        """The artifact of a stage whose result depends on `facts` (JSON-ready) and on nothing else."""
        key = fingerprint({"stage": stage, **facts})
        return Artifact(self._root / stage / key, stage, key)
