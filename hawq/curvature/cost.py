"""What the readings of each block cost, in seconds and in gradients."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class CostMeter:
    """Seconds spent on each block; what all blocks share is split evenly among them.

    Args:
        names: the blocks.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        """Seconds per block so far."""
        self._passes: list[float] = []

    @property
    def gradient_seconds(self) -> float:
        """Seconds of one forward and first backward over all samples of this process, the unit of cost."""
        return sum(self._passes) / max(len(self._passes), 1)

    @property
    def knows_a_pass(self) -> bool:
        """Whether a forward and first backward over all samples was timed."""
        return bool(self._passes)

    def add_pass(self, seconds: float) -> None:
        """Notes what one forward and first backward over all samples took."""
        self._passes.append(seconds)

    def share(self, names: Iterable[str], began: float, device: torch.device) -> float:
        """Counts the time since `began` (of `time.perf_counter`) for the named blocks together, and returns it."""
        names = list(names)
        if names:
            _synchronize(device)
        seconds = time.perf_counter() - began
        for name in names:
            self.seconds[name] += seconds / len(names)
        return seconds

    @contextmanager
    def of(self, name: str, vector: Tensor) -> Iterator[None]:
        """Counts the body for one block; `vector` is on the device that does the work."""
        began = time.perf_counter()
        yield
        _synchronize(vector.device)
        self.seconds[name] += time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
