"""The processes of one run, as in torch.distributed; a run that was started alone is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = timedelta(days=1)  # other processes wait while the first one evaluates, allocates, packs


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started (NCCL on GPUs, gloo otherwise) and leaves the group at the end."""
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
    """The number of this process among all, 0 when started alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 when started alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def shard(count: int, part: int, parts: int) -> slice:
    """Share number `part` of `parts` contiguous shares of `count` samples; their sizes differ by at most one."""
    return slice(part * count // parts, (part + 1) * count // parts)


def all_reduce_sum(count: int, device: torch.device) -> int:
    """The sum of a whole number over all processes; the reduction runs on `device`."""
    if not dist.is_initialized():
        return count
    box = torch.tensor(count, device=device)
    all_reduce([box])
    return int(box)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor (any shape, equal on all processes) by its sum over all processes, bit-identical on each."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.all_reduce(tensor)


def all_reduce_coalesced(tensors: Sequence[Tensor]) -> None:
    """`all_reduce` of many tensors of one dtype, sent as one; every process must give tensors of the same shapes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def all_gather(value: Any) -> list[Any]:
    """The picklable values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The picklable value of the first process, on every process."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_parameters(model: nn.Module) -> None:
    """Overwrites all parameters and buffers with those of the first process."""
    for tensor in (*model.parameters(), *model.buffers()) if dist.is_initialized() else ():
        dist.broadcast(tensor.detach(), src=0)
