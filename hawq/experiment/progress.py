"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from shutil import get_terminal_size
from types import TracebackType
from typing import TYPE_CHECKING

from hawq.records import Estimate

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_LINE_EVERY_SECONDS = 15.0
_BOUND = 0.9  # of `Estimate.confidence`: below it an error is a standard error
_TELLING = 0.2  # share of the work below which a remaining time would be a guess


def speaks() -> bool:
    """Whether this process is the one that talks: the first of a group, or the only one."""
    if "torch.distributed" not in sys.modules:
        return True
    from hawq.distributed import rank

    return rank() == 0


def is_quiet() -> bool:
    """Whether --quiet was typed, for this process or the one that started it."""
    return os.environ.get("HAWQ_QUIET") == "1"


def be_quiet(arguments: Sequence[str]) -> list[str]:
    """The arguments without --quiet, which also holds for the processes that this one starts, and for Hydra."""
    kept = [argument for argument in arguments if argument != "--quiet"]
    if len(kept) == len(arguments):
        return kept
    os.environ["HAWQ_QUIET"] = "1"
    return [*kept, "hydra/hydra_logging=none"]


class Console:
    """Bars and lines on standard error, of the first process alone (`hawq.progress.Progress`)."""

    def task(self, title: str, total: int, *, done: int = 0) -> TaskBar:
        """A bar over `total` steps."""
        return TaskBar(total, title, done=done, shown=speaks())

    def blocks(self, names: Sequence[str], tolerance: float | None) -> BlockBars:
        """A bar per block, from an error as large as the value down to the relative tolerance."""
        return BlockBars(names, tolerance)


class TaskBar:
    """`with TaskBar(total, "training") as bar: bar.advance(1, "loss 0.3")`."""

    def __init__(self, total: int, title: str, *, done: int = 0, shown: bool = True) -> None:
        self._total, self._title, self._done, self._first = total, title, done, done
        self._started = self._printed = time.monotonic()
        self._shown = shown and not is_quiet()
        self._bars = _bars(remaining=True) if self._shown and sys.stderr.isatty() else None
        if self._bars is not None:
            self._bar = self._bars.add_task(title, total=total, completed=done, note="")
            self._bars.start()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Marks `steps` more as done; `note` stands beside the bar."""
        self._done += steps
        if self._bars is not None:
            self._bars.update(self._bar, advance=steps, note=note)
        elif self._shown and time.monotonic() - self._printed >= _LINE_EVERY_SECONDS:
            self._print(note)

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        rate = (self._done - self._first) / seconds
        pace = f"{rate:.2g}/s, {(self._total - self._done) / rate:.0f} s left" if rate else f"{seconds:.0f} s so far"
        print(f"{self._title}: {self._done}/{self._total}, {pace}{note and ', '}{note}", file=sys.stderr, flush=True)

    def __enter__(self) -> TaskBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


class BlockBars:
    """One bar a block, how far its error has come down to the tolerance; lines about all of them elsewhere.

    Remaining time comes from the pace at which the logarithm of each error falls.
    """

    def __init__(self, names: Sequence[str], tolerance: float | None) -> None:
        self._tolerance, self._started = tolerance, time.monotonic()
        self._printed = self._started
        self._shares, self._spent = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self._notes: dict[str, str] = {}
        self._unpaced: set[str] = set()
        self._shown = speaks() and not is_quiet()
        fits = self._shown and sys.stderr.isatty() and len(names) < get_terminal_size().lines - 1
        self._bars = _bars(remaining=False) if fits else None
        if self._bars is not None:
            self._places = {name: self._bars.add_task(name, total=100, note="") for name in names}
            self._bars.start()

    def show(self, name: str, estimate: Estimate, done: bool) -> None:
        """The newest estimate of one block."""
        self._shares[name] = 1.0 if done else max(self._shares[name], self._share(estimate))
        self._spent[name] = self._spent[name] + 1.0 if estimate.seconds is None else estimate.seconds
        error = f" ± {estimate.error:.1g}" if math.isfinite(estimate.error) else ""
        self._notes[name] = f"{estimate.value:.4g}{error}"
        if estimate.confidence is not None and estimate.confidence >= _BOUND:  # it falls at no pace that one could know
            self._unpaced.add(name)
        if self._bars is not None:
            self._bars.update(self._places[name], completed=100 * self._shares[name], note=self._notes[name])
        elif self._shown and time.monotonic() - self._printed >= _LINE_EVERY_SECONDS:
            self._print()

    def _share(self, estimate: Estimate) -> float:
        """0 at an error as large as the value, 1 at the tolerance: by orders of magnitude, as iterations converge, or
        by the draws that a standard error takes.
        """
        if self._tolerance is None or not estimate.value or not 0 < estimate.error < abs(estimate.value):
            return 0.0
        if estimate.confidence is not None and estimate.confidence < _BOUND:  # a standard error falls with √draws
            return min((self._tolerance * abs(estimate.value) / estimate.error) ** 2, 0.99)
        return min(math.log(abs(estimate.value) / estimate.error) / -math.log(self._tolerance), 0.99)

    def _remaining(self) -> float | None:
        """Seconds until all blocks are done: what each has taken by now, over its share; None while that is a guess."""
        waiting = [name for name, share in self._shares.items() if share < 1.0]
        if any(self._shares[name] == 0.0 or name in self._unpaced for name in waiting):
            return None
        elapsed = self._printed - self._started
        seconds = elapsed / (sum(self._spent.values()) or 1.0)  # also what is done beside the readings
        left = seconds * sum(self._spent[name] * (1 / self._shares[name] - 1) for name in waiting)
        return left if elapsed >= _TELLING * (elapsed + left) else None

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds, remaining = self._printed - self._started, self._remaining()
        left = f"{seconds:.0f} s so far" if remaining is None else f"about {remaining:.0f} s left"
        open_ones = ", ".join(f"{name} {self._notes[name]}" for name, s in self._shares.items() if 0 < s < 1)
        ready = sum(share == 1.0 for share in self._shares.values())
        line = f"analysis: {ready}/{len(self._shares)} blocks, {left}{open_ones and '; '}{open_ones}"
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> BlockBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _bars(*, remaining: bool) -> Bars:
    """Bars on the terminal that vanish when they are stopped; with the `remaining` time where a pace foretells it."""
    from rich.console import Console as Terminal
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = (TimeElapsedColumn(), TimeRemainingColumn()) if remaining else (TimeElapsedColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True), *times)
    note = TextColumn("{task.fields[note]}")
    return Progress(*columns, note, console=Terminal(stderr=True), transient=True, refresh_per_second=4)
