"""Work in several processes that talk to each other, as torchrun would start them."""

from __future__ import annotations

import multiprocessing as mp
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runs import REPOSITORY, command_line


def in_processes(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of `count` forked processes that are one group, by rank."""
    context = mp.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        group = [context.Process(target=_join, args=(i, count, Path(folder), work), daemon=True) for i in range(count)]
        for process in group:
            process.start()
        for process in group:
            process.join(timeout=60)
        assert [process.exitcode for process in group] == [0] * count
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def _join(rank: int, count: int, folder: Path, work: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    dist.barrier()  # all are connected before one of them may leave
    (folder / str(rank)).write_bytes(pickle.dumps(work()))
    dist.destroy_process_group()


def run_in_two(outputs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node=2 train.py ...` with tiny settings."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, "train.py", *command_line(outputs, *arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
