"""What can be imported without the heavy libraries: allocation, records, costs and tables need none of them."""

from __future__ import annotations

import subprocess
import sys

from runs import REPOSITORY

HEAVY = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "wandb", "onnx", "scipy.optimize", "scipy.stats")
LIGHT = (
    *("allocation", "records", "costs", "errors", "checks", "components", "files", "measurement"),
    *("validation", "report"),
)

# `import hawq.x` runs hawq/__init__.py first; an empty package takes its place here, to test each room alone.
PROBE = """
import sys, types
package = types.ModuleType("hawq")
package.__path__ = [sys.argv[1]]
sys.modules["hawq"] = package
for room in sys.argv[2].split(","):
    __import__("hawq." + room)
print(",".join(name for name in sys.argv[3].split(",") if name in sys.modules))
"""


def loaded(rooms: str) -> str:
    """Which heavy libraries a fresh process has loaded after importing these rooms."""
    command = [sys.executable, "-c", PROBE, str(REPOSITORY / "hawq"), rooms, ",".join(HEAVY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_light_rooms_load_no_heavy_library() -> None:
    assert loaded(",".join(LIGHT)) == ""


def test_the_probe_sees_what_is_loaded() -> None:
    assert "torch" in loaded("weights").split(",")
