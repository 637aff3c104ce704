"""The processes of one run, as torch.distributed knows them; a run that was started alone is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(days=1)  # other processes wait while the first one trains the float network


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, NCCL on GPUs and gloo else, and leaves them at the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its machine: the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes; all receive the same bits."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.all_reduce(tensor)


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The value of the first process, on every process."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def share_out(tensors: Sequence[Tensor]) -> None:
    """Overwrites each tensor by that of the first process."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.broadcast(tensor, src=0)
