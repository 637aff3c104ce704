"""What a run is asked for: its options, and its components once they are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.checks import check_choice, check_range
from hawq.experiment.table import NAMES

if TYPE_CHECKING:
    import torch

    from hawq.allocation import Allocation, Allocator
    from hawq.curvature import Solver
    from hawq.data import ImageData
    from hawq.deployment import DyadicReport, NoDeployment, OnnxDeployment
    from hawq.experiment.tracking import Tracking
    from hawq.export import PackedExport
    from hawq.finetuning import FineTuning, Training
    from hawq.models import ModelSpec
    from hawq.quantization import Quantizer
    from hawq.reconstruction import NoReconstruction, Reconstruction, Tuning
    from hawq.search import Search
    from hawq.sensitivity import Analysis
    from hawq.validation import Validation

COMPONENTS = (
    "model",
    "dataset",
    "float_network",
    "analysis",
    "solver",
    "validate",
    "bits",
    "search",
    "allocation",
    "quantizer",
    "reconstruction",
    "tuning",
    "finetune",
    "export",
    "deploy",
    "tracking",
)
"""Sections of the config that are built into an object each."""

TEACHERS = "teachers"
"""The section that holds networks, by names of the user's, each an option of the group model."""

FROM_FILE = ("bits", "allocation", "tracking")
"""Those of a run that starts from a sensitivity file, which needs neither network nor data."""

BASELINES = ("direct", "none")
_MOST_THREADS, _MOST_WORKERS = 1024, 256


@dataclass(frozen=True)
class RunOptions:
    """The options of `config.yaml` itself.

    Args:
        stages: which stages may do work; a result that is already in the cache is used without being named.
        seed: of every random draw.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads, or None for PyTorch's choice.
        workers: processes that load training images; 0 loads them in the main process.
        baseline: "direct" adds a uniform network of at most the same size to the results, "none" leaves it out.
        outputs: folder for runs and cache.
        allowed_targets: prefixes that a `_target_` may have; others than `hawq.` count only on the command line.

    Raises:
        ValueError: a value out of range.
    """

    stages: tuple[str, ...]
    seed: int
    device: str
    threads: int | None
    workers: int
    baseline: str
    outputs: str
    allowed_targets: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in NAMES]
        if unknown:
            raise ValueError(f"stages={list(self.stages)} has unknown stages {unknown}: give some of {list(NAMES)}")
        check_range("seed", self.seed, least=0, most=2**31 - 1)
        check_range("threads", self.threads, least=1, most=_MOST_THREADS, optional=True)
        check_range("workers", self.workers, least=0, most=_MOST_WORKERS)
        check_choice("baseline", self.baseline, BASELINES)
        if not self.outputs.strip():
            raise ValueError("outputs is empty: give a folder, say outputs=outputs")
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()) or (kind == "auto" and index):
            raise ValueError(f"device={self.device!r} is unknown: give auto, cpu, cuda or cuda:N")

    def torch_device(self) -> torch.device:
        """The device of this process. Raises ValueError for one that this machine does not have."""
        import torch

        from hawq.distributed import local_rank

        name = self.device
        if name == "auto":
            name = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={self.device!r} is not on this machine: give auto or cpu")
        return device


@dataclass(frozen=True)
class Settings:
    """Everything a run was asked for, built and checked.

    A run that starts from a sensitivity file has only the components in `FROM_FILE`; the others are None.

    Args:
        compared: the solvers that validate.solvers names.
        teachers: the networks that fine-tuning learns from in place of the float one, by the user's names.
        folder: of the run.
        resolved: the whole config as plain values, without secrets.
        command: what was typed.
    """

    options: RunOptions
    folder: Path
    resolved: dict[str, Any]
    command: str
    bits: Allocator
    allocation: Allocation
    tracking: Tracking
    model: ModelSpec = None  # type: ignore[assignment]
    dataset: ImageData = None  # type: ignore[assignment]
    float_network: Training = None  # type: ignore[assignment]
    analysis: Analysis = None  # type: ignore[assignment]
    solver: Solver = None  # type: ignore[assignment]
    validate: Validation = None  # type: ignore[assignment]
    quantizer: Quantizer = None  # type: ignore[assignment]
    reconstruction: NoReconstruction | Reconstruction = None  # type: ignore[assignment]
    tuning: Tuning = None  # type: ignore[assignment]
    finetune: FineTuning = None  # type: ignore[assignment]
    export: PackedExport = None  # type: ignore[assignment]
    deploy: NoDeployment | OnnxDeployment | DyadicReport = None  # type: ignore[assignment]
    compared: dict[str, Solver] = None  # type: ignore[assignment]
    teachers: dict[str, ModelSpec] = None  # type: ignore[assignment]
    search: Search = None  # type: ignore[assignment]
