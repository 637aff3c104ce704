"""Where a result comes from: versions, commit, machine."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "scipy", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide results, and the machine."""
    found = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", **found}


def hardware(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"^model name\s*: (.+)$", _text(Path("/proc/cpuinfo")), flags=re.MULTILINE)
    threads = torch.get_num_threads()
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{threads} thread{'s' * (threads > 1)} of {name}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def git_commit(repository: Path) -> str | None:
    """Commit of the code in `repository`, with "+changes" when files differ from it; None outside a repository."""
    try:
        commit = _git(repository, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(repository, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
