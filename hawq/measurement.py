"""Time and memory that a piece of work took."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hawq.malloc import return_freed_memory

if TYPE_CHECKING:
    import torch


@dataclass
class Measured:
    """Seconds and peak resident memory of a piece of work, filled in when it ends."""

    seconds: float = 0.0
    peak_memory_mib: float = 0.0


@contextmanager
def measured() -> Iterator[Measured]:
    """Measures wall-clock seconds and peak resident memory of the body of a `with` statement.

    Where the peak cannot be reset (not on Linux), it is that of the process so far.
    """
    result = Measured()
    return_freed_memory()
    _reset_peak()
    started = time.monotonic()
    try:
        yield result
    finally:
        result.seconds = round(time.monotonic() - started, 2)
        result.peak_memory_mib = round(_peak_mib(), 1)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mib() -> float:
    peak = _status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def memory_in_use_bytes(device: torch.device) -> float:
    """Memory that this process holds: bytes allocated on a GPU, else resident bytes (their peak, if not on Linux)."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.memory_allocated(device))
    return_freed_memory()
    resident = _status_mib("VmRSS")
    return 2**20 * (_peak_mib() if resident is None else resident)


def _status_mib(key: str) -> float | None:
    """One entry of Linux's /proc/self/status, in MiB; None on other systems."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return None
