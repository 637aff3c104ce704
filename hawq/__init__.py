"""HAWQ: Hessian-aware mixed-precision quantisation of vision networks (1905.03696, 1911.03852, 2011.10680)."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hawq.allocation import HawqV3, IntegerProgram, Manual, Monotone, UniformBits, allocate
    from hawq.blocks import find_blocks
    from hawq.curvature import (
        Fisher,
        GradientNorm,
        Hutchinson,
        Lanczos,
        LowRank,
        NoCurvature,
        PowerIteration,
        RandomScore,
    )
    from hawq.deployment import deploy, integer_network
    from hawq.export import load, packed_overhead, save
    from hawq.finetuning import Ensemble, FineTuning, finetune
    from hawq.quantization import LSQ, Uniform, quantize, reestimate_batch_norm
    from hawq.reconstruction import BRECQ, AdaRound, Descent, QDrop, Tuning, reconstruct, tune
    from hawq.records import BitPlan, Block, Estimate, Phase, Precision, RunReport, Sensitivity
    from hawq.search import Haq, OptunaSearch, RandomSearch, refine, search_plan
    from hawq.sensitivity import analyze

__version__ = "0.1.0"

_HOMES = {
    "hawq.allocation": ("HawqV3", "IntegerProgram", "Manual", "Monotone", "UniformBits", "allocate"),
    "hawq.blocks": ("find_blocks",),
    "hawq.curvature": (
        *("Fisher", "GradientNorm", "Hutchinson", "Lanczos", "LowRank"),
        *("NoCurvature", "PowerIteration", "RandomScore"),
    ),
    "hawq.deployment": ("deploy", "integer_network"),
    "hawq.export": ("load", "packed_overhead", "save"),
    "hawq.finetuning": ("Ensemble", "FineTuning", "finetune"),
    "hawq.quantization": ("LSQ", "Uniform", "quantize", "reestimate_batch_norm"),
    "hawq.reconstruction": ("AdaRound", "BRECQ", "Descent", "QDrop", "Tuning", "reconstruct", "tune"),
    "hawq.records": ("BitPlan", "Block", "Estimate", "Phase", "Precision", "RunReport", "Sensitivity"),
    "hawq.search": ("Haq", "OptunaSearch", "RandomSearch", "refine", "search_plan"),
    "hawq.sensitivity": ("analyze",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_RENAMED = {"Mixed": "IntegerProgram"}

__all__ = [
    "BRECQ",
    "LSQ",
    "AdaRound",
    "BitPlan",
    "Block",
    "Descent",
    "Ensemble",
    "Estimate",
    "FineTuning",
    "Fisher",
    "GradientNorm",
    "Haq",
    "HawqV3",
    "Hutchinson",
    "IntegerProgram",
    "Lanczos",
    "LowRank",
    "Manual",
    "Monotone",
    "NoCurvature",
    "OptunaSearch",
    "Phase",
    "PowerIteration",
    "Precision",
    "QDrop",
    "RandomScore",
    "RandomSearch",
    "RunReport",
    "Sensitivity",
    "Tuning",
    "Uniform",
    "UniformBits",
    "allocate",
    "analyze",
    "deploy",
    "find_blocks",
    "finetune",
    "integer_network",
    "load",
    "packed_overhead",
    "quantize",
    "reconstruct",
    "reestimate_batch_norm",
    "refine",
    "save",
    "search_plan",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Imports a name's module when the name is first asked for, so that `import hawq` alone costs nothing."""
    if name in _RENAMED:
        warnings.warn(f"hawq.{name} is called hawq.{_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hawq' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
