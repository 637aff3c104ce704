"""How the tests start runs: the real command line, in this process or in one of its own, with tiny settings."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf"

TINY = (
    "tracking=none",
    "threads=1",
    "device=cpu",
    "baseline=none",
    "model.small_input_size=8",
    "float_network.max_steps=2",
    "finetune.max_steps=2",
    "finetune.reestimate_batches=1",
    "analysis.num_samples=16",
    "solver=lanczos",
    "solver.max_iterations=2",
)


def command_line(outputs: Path, *arguments: str) -> list[str]:
    """Arguments of `train.py` for a tiny run; flags come first, because Hydra wants all overrides in one piece."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    return [*flags, *TINY, f"outputs={outputs}", *(argument for argument in arguments if argument not in flags)]


def run_here(outputs: Path, *arguments: str) -> str | None:
    """`python train.py ...` in this process; what it ended with: an error message, or None when all went well."""
    import train

    with _as_main(["train.py", *command_line(outputs, *arguments)]):
        try:
            train.command_line()
        except SystemExit as stopped:
            return None if not stopped.code else str(stopped.code)
    return None


def run_apart(outputs: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """`python train.py ...` in a process of its own, without a terminal; the finished process with its texts."""
    return subprocess.run(
        [sys.executable, "train.py", *command_line(outputs, *arguments)],
        cwd=REPOSITORY,
        env=dict(environment or os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_script(name: str, *arguments: object) -> str | None:
    """`python scripts/<name> ...` in this process; its error message, or None when all went well."""
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
        try:
            runpy.run_path(str(REPOSITORY / "scripts" / name), run_name="__main__")
        except SystemExit as stopped:
            return None if not stopped.code else str(stopped.code)
    return None


def compose_here(*overrides: str) -> DictConfig:
    """The composed config, as `train.py` would hand it to `build_settings`."""
    from hawq.experiment.config.names import register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = config.hydra.run.dir
        config.hydra.overrides.task = list(overrides)
    HydraConfig.instance().set_config(config)
    return config


def run_folder(outputs: Path) -> Path:
    """The folder of the only run below `outputs`."""
    (folder,) = (outputs / "runs").iterdir()
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def page_data(path: Path) -> Any:
    """What the charts of a page are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def files_below(folder: Path) -> list[str]:
    """Everything below a folder that may not exist, by name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def finished(outputs: Path, stage: str) -> list[Path]:
    """Folders of a stage's finished artifacts in the cache."""
    return sorted(path.parent for path in (outputs / "cache" / stage).glob("*/manifest.json"))


@contextlib.contextmanager
def _as_main(argv: list[str]) -> Iterator[None]:
    """Lets Hydra take this process for `python train.py`, and puts back what a run changes in it."""
    threads, handlers = torch.get_num_threads(), list(logging.root.handlers)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    with mock.patch.object(sys, "argv", argv), mock.patch.dict(os.environ, {"HYDRA_MAIN_MODULE": "__main__"}):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            logging.root.handlers[:] = handlers
            GlobalHydra.instance().clear()
