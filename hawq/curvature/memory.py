"""How much memory a computation needs, how much there is, and how many samples fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hawq.errors import UserError
from hawq.malloc import return_freed_memory
from hawq.measurement import memory_in_use_bytes

_OUT_OF_MEMORY = (  # of the allocators of PyTorch, the C++ library, oneDNN and CUDA's libraries
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory object",
    "alloc_failed",
)
SHARE = 1 / 5  # of the memory that is free at the start, where no limit is given
_SCARCE = 0.04  # of all memory: with less of it free, the system may kill the process
_TRIAL_SIZES = (2, 4)
_MARGIN = 0.6  # of what is free: allocators keep what they once had, and kernels have buffers of their own (measured)


class _LiveBytes(TorchDispatchMode):
    """Counts the live bytes of all tensors that are made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes that the tensors made by `work` take at one time."""
    with _LiveBytes() as counter:
        work()
    return counter.peak


def free_bytes(device: torch.device) -> tuple[float, float] | None:
    """Memory that is free for this process, and all there is, of a GPU or of the machine; None where it is not known.

    On Linux that is MemAvailable, and what a control group leaves of its limit.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached), float(total)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    left, whole = (1024.0 * float(rows[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        left, whole = min((left, whole), (max(limit - used, 0.0), limit))
    return left, whole


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def spared_limit(device: torch.device) -> float | None:
    """Bytes of this process without a given limit: what it holds, and `SHARE` of what is free; None if not known."""
    in_use = memory_in_use_bytes(device)  # first: what is kept unused is returned, and then counts as free
    known = free_bytes(device)
    return None if known is None else in_use + SHARE * known[0]


def limit_bytes(device: torch.device, gib: float | None) -> float | None:
    """Most bytes of this process: a limit that is given in GiB, else `spared_limit`."""
    return spared_limit(device) if gib is None else gib * 2**30


def is_scarce(device: torch.device) -> bool:
    """Whether so little memory is free that batches must become smaller."""
    if not _leaves_little(free_bytes(device)):
        return False
    return_freed_memory()
    return _leaves_little(free_bytes(device))


def _leaves_little(known: tuple[float, float] | None) -> bool:
    return known is not None and known[0] < _SCARCE * known[1]


def samples_that_fit(limit_bytes: float, in_use_bytes: float, needs: dict[int, int]) -> int:
    """How many samples may be in one batch: bytes are a linear function of samples, seen at two small batches.

    Args:
        limit_bytes: most bytes of the process.
        in_use_bytes: what it holds already.
        needs: samples → bytes of two batches of different size.

    Raises:
        UserError: not even one sample fits.
    """
    (few, few_bytes), (more, more_bytes) = sorted(needs.items())
    each = max((more_bytes - few_bytes) / (more - few), 1)
    fixed = max(few_bytes - few * each, 0)
    free = _MARGIN * (limit_bytes - in_use_bytes) - fixed
    if free < each:
        needed = in_use_bytes + (fixed + each) / _MARGIN
        raise UserError(
            f"solver.memory_limit_gib={limit_bytes / 2**30:.3g} is too little for one sample: "
            f"give {needed / 2**30 + 0.01:.2f} or more"
        )
    return int(free // each)


def fitting_size(
    trial: Callable[[int], Any],
    most: int,
    limit_bytes: float,
    held_bytes: Callable[[], float],
    *,
    refuses: bool = True,
) -> int:
    """How many samples may be in one batch, seen at two small ones; `most` where there are not two to be tried.

    Args:
        trial: works on a batch of so many samples.
        most: samples that a trial can have.
        limit_bytes: most bytes of the process.
        held_bytes: what it will hold beside a batch, asked after the trials.
        refuses: whether a limit that is too small for one sample is refused; else one is tried.

    Raises:
        UserError: not even one sample fits, and that is refused.
    """
    sizes = sorted({min(size, most) for size in _TRIAL_SIZES})
    if len(sizes) < 2:
        return sizes[0]
    needs = {size: peak_bytes(partial(trial, size)) for size in sizes}
    try:
        return samples_that_fit(limit_bytes, held_bytes(), needs)
    except UserError:
        if refuses:
            raise
        return 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: PyTorch has a class for it on GPUs, and only texts on CPUs."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
