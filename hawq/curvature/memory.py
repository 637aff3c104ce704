"""How much memory a computation needs, and how many samples fit a limit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hawq.errors import UserError

_OUT_OF_MEMORY = (  # of the allocators of PyTorch, the C++ library, oneDNN and CUDA's libraries
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory object",
    "alloc_failed",
)
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: PyTorch has a class for it on GPUs, and only texts on CPUs."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
