"""The floor plan: a room imports only from floors below it, and each library is known to few rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from runs import REPOSITORY

FLOORS = (
    ("errors", "checks", "components", "malloc", "modes", "distributed", "attention", "resuming", "lazy"),
    ("records", "files", "weights", "layers", "structures", "measurement"),
    ("progress", "tracing", "costs", "call_graph"),
    ("unquantized", "replay"),
    ("blocks",),
    ("curvature", "quantization"),
    ("trials", "single_blocks"),
    ("scoring",),
    ("sensitivity", "allocation", "finetuning", "export", "models", "data", "evaluation"),
    ("validation", "reconstruction", "search"),
    ("report", "deployment"),
    ("hawq",),  # the library's front door, hawq/__init__.py
    # ---------- the library ends here: nothing above this line imports hawq.experiment ----------
    ("experiment.artifacts", "experiment.progress", "experiment.table"),
    ("experiment.jobs",),
    ("experiment.console",),
    ("experiment.tracking",),
    ("experiment.metrics",),
    ("experiment.config",),
    ("experiment.inputs",),
    ("experiment.teachers",),
    ("experiment.prepare",),
    ("experiment.run",),
    ("experiment.stages",),
    ("experiment.pipeline",),
    ("experiment.sweep", "experiment.drawing"),
    ("experiment.recording",),
    ("experiment.main", "experiment"),
    ("train", "scripts"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

KNOWN_TO = {
    "hydra": {"experiment.config", "experiment.sweep", "experiment.main"},
    "omegaconf": {"experiment.config", "experiment.sweep", "experiment.main"},
    "wandb": {"experiment.tracking"},
    "timm": {"models", "data", "finetuning"},
    "torchvision": {"models", "data"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "playwright": {"scripts"},
    "rich": {"experiment.progress", "experiment.console"},
    "tensorboard": {"experiment.tracking"},
    "onnx": {"deployment"},
    "onnxruntime": {"deployment"},
    "openvino": {"deployment"},
    "brevitas": {"deployment"},
}

FILES = sorted([*REPOSITORY.glob("hawq/**/*.py"), REPOSITORY / "train.py", *REPOSITORY.glob("scripts/*.py")])


def room_of(path: Path) -> str:
    """hawq/report/tables.py → report, hawq/experiment/stages/x.py → experiment.stages, scripts/x.py → scripts."""
    parts = [part for part in path.relative_to(REPOSITORY).with_suffix("").parts if part != "__init__"]
    return _room(parts[1:]) or "hawq" if parts[0] == "hawq" else parts[0]


def _room(parts: Sequence[str]) -> str:
    """The room of a dotted path below hawq: its first part, or its first two inside hawq.experiment."""
    return ".".join(parts[: 2 if parts[:1] == ["experiment"] else 1])


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names that a source imports, anywhere in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they reach into: write hawq.room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached_room(module: str) -> str | None:
    """The room that a dotted name lies in, None for a library."""
    top, *rest = module.split(".")
    if top == "hawq":
        room = _room(rest)
        return room if room in FLOOR_OF else _room(rest[:1]) if _room(rest[:1]) in FLOOR_OF else "hawq"
    return top if top in FLOOR_OF else None


def violations(source: str, room: str) -> list[str]:
    """What a source of `room` imports against the plan."""
    found = []
    for module in imported_modules(source):
        reached, library = reached_room(module), module.split(".")[0]
        if reached not in (None, room) and FLOOR_OF[reached] >= FLOOR_OF[room]:
            found.append(f"{room} (floor {FLOOR_OF[room]}) imports {module} (floor {FLOOR_OF[reached]})")
        if reached is None and room not in KNOWN_TO.get(library, {room}):
            found.append(f"{room} imports {module}, which only {sorted(KNOWN_TO[library])} may")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_only_from_below(path: Path) -> None:
    assert violations(path.read_text(), room_of(path)) == []


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert source.count("\n") <= MOST_LINES
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


def test_plan_names_every_room_and_no_other() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("records", "from hawq.costs import plan_cost", "hawq.costs"),
        ("records", "import hawq.blocks", "hawq.blocks"),
        ("allocation", "from hawq.experiment import pipeline", "hawq.experiment.pipeline"),
        ("allocation", "def f():\n    from hawq.finetuning.loop import fit", "hawq.finetuning"),
        ("experiment.stages", "from hawq.experiment import pipeline", "hawq.experiment.pipeline"),
        ("sensitivity", "import hawq", "imports hawq"),
        ("report", "from hawq.experiment.artifacts import Store", "hawq.experiment.artifacts"),
        ("hawq", "import hawq.experiment", "hawq.experiment"),
        ("experiment.sweep", "import train", "imports train"),
        ("experiment.pipeline", "from omegaconf import OmegaConf", "omegaconf"),
        ("report", "if True:\n    import wandb.sdk", "wandb"),
        ("curvature", "import numpy, timm.models", "timm"),
        ("export", "from torchvision.transforms import v2", "torchvision"),
        ("export", "import onnx.helper", "onnx"),
        ("experiment.stages", "from onnxruntime import InferenceSession", "onnxruntime"),
        ("report", "import openvino", "openvino"),
        ("experiment.stages", "from jinja2 import Template", "jinja2"),
        ("report", "import rich.table", "rich"),
        ("experiment.tracking", "import matplotlib.pyplot as plt", "matplotlib"),
    ],
)
def test_check_sees_a_forbidden_import(room: str, source: str, complaint: str) -> None:
    (found,) = violations(source, room)
    assert complaint in found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("blocks", "from hawq.records import Block"),
        ("report", "from hawq.report.tables import markdown"),
        ("experiment.tracking", "import wandb"),
        ("experiment.main", "from hydra.errors import HydraException"),
        ("records", "import json, torch"),
    ],
)
def test_check_lets_the_plan_through(room: str, source: str) -> None:
    assert violations(source, room) == []
