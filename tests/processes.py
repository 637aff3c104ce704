"""Work in several processes that talk to each other, as torchrun would start them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import REPOSITORY, command_line


def in_processes(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of `count` forked processes that are one group, by rank."""
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_join, args=(i, count, folder, work, queue), daemon=True) for i in range(count)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=60)
        assert [process.exitcode for process in ranks] == [0] * count
        return [value for _, value in sorted((queue.get() for _ in ranks), key=lambda pair: pair[0])]


def _join(rank: int, count: int, folder: str, work: Callable[[], Any], queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    queue.put((rank, work()))
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
