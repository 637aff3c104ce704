"""What can be imported without the heavy libraries: allocation, records, costs and tables need none of them."""

from __future__ import annotations

import subprocess
import sys

from runs import REPOSITORY

HEAVY = (
    *("torch", "torchvision", "timm", "sklearn", "matplotlib", "wandb", "onnx", "scipy.optimize", "scipy.stats"),
    *("jinja2", "rich", "tensorboard"),
)
LIGHT = (
    *("allocation", "records", "costs", "errors", "checks", "components", "files", "measurement"),
    *("validation", "report"),
)

PROBE = """
import importlib, sys
for room in sys.argv[1].split(","):
    importlib.import_module("hawq." + room)
print(",".join(name for name in sys.argv[2].split(",") if name in sys.modules))
"""


def loaded(rooms: str) -> str:
    """Which heavy libraries a fresh process has loaded after importing these rooms."""
    command = [sys.executable, "-c", PROBE, rooms, ",".join(HEAVY)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def test_light_rooms_load_no_heavy_library() -> None:
    assert loaded(",".join(LIGHT)) == ""


def test_the_probe_sees_what_is_loaded() -> None:
    assert "torch" in loaded("weights").split(",")
