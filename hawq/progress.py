"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_EVERY_SECONDS = 15.0


class Progress:
    """`with Progress(total, "analysis") as progress: progress.advance(1, "λ 3.2 ± 0.1")`."""

    def __init__(self, total: int, title: str, *, done: int = 0, shown: bool = True) -> None:
        self._total, self._title, self._done, self._first = total, title, done, done
        self._started = self._printed = time.monotonic()
        self._shown = shown
        terminal = shown and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=title, initial=done, leave=False, dynamic_ncols=True) if terminal else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Marks `steps` more as done; `note` stands beside the bar."""
        self._done += steps
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(steps)
        elif self._shown and time.monotonic() - self._printed >= _LINE_EVERY_SECONDS:
            self._print(note)

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        rate = (self._done - self._first) / seconds
        pace = f"{rate:.2g}/s, {(self._total - self._done) / rate:.0f} s left" if rate else f"{seconds:.0f} s so far"
        print(f"{self._title}: {self._done}/{self._total}, {pace}{note and ', '}{note}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
