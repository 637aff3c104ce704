"""How long work tells how far it has come: a library verb calls back, whoever listens draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from hawq.records import Estimate

Batch = TypeVar("Batch")


class Task(Protocol):
    """A piece of work whose steps are counted."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is what the last of them found."""
        ...


class BlockTask(Protocol):
    """An analysis of many blocks at once."""

    def show(self, name: str, estimate: Estimate, done: bool) -> None:
        """The newest estimate of one block, and whether it is the last one."""
        ...


class Progress(Protocol):
    """Listens to long work. Used as `with progress.task("training", 100) as task: task.advance()`."""

    def task(self, title: str, total: int, *, done: int = 0) -> AbstractContextManager[Task]:
        """Work of `total` steps begins, of which `done` were done by an earlier process."""
        ...

    def blocks(self, names: Sequence[str], tolerance: float | None) -> AbstractContextManager[BlockTask]:
        """An analysis of the named blocks begins, each until its relative error is below `tolerance`."""
        ...


class Silent:
    """Listens and says nothing: the default of all library verbs."""

    def task(self, title: str, total: int, *, done: int = 0) -> AbstractContextManager[Task]:
        """A task that nobody sees."""
        return nullcontext(self)

    def blocks(self, names: Sequence[str], tolerance: float | None) -> AbstractContextManager[BlockTask]:
        """An analysis that nobody sees."""
        return nullcontext(self)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Nothing."""

    def show(self, name: str, estimate: Estimate, done: bool) -> None:
        """Nothing."""


SILENT: Any = Silent()


def counted(batches: Iterable[Batch], task: Task) -> Iterator[Batch]:
    """The same batches; `task` is advanced by the samples of each once it has been worked on."""
    for batch in batches:
        yield batch
        task.advance(len(batch))  # type: ignore[arg-type]
