"""What a run takes where solver, bits.score, reconstruction and analysis.activations are left to it."""

from __future__ import annotations

import dataclasses
from typing import Any

from hawq.components import component_name
from hawq.records import MEASURED, WHOLE_PLANS, parts_of

FINDERS = {"eigenvalue": "lanczos", "trace": "trace", "proxy": "gradient"}
"""Curvature → the option of the group solver that finds it."""


def is_automatic(component: Any) -> bool:
    """Whether a built component is the option auto of its group."""
    return (component_name(type(component)) or "").endswith("/auto")


def with_best_score(bits: Any) -> Any:
    """The same allocator, by the score that ranks whole plans best where it leaves that open (score=auto)."""
    return dataclasses.replace(bits, score=WHOLE_PLANS) if getattr(bits, "score", None) == "auto" else bits


def with_activations(analysis: Any, bits: Any) -> Any:
    """The same analysis, of activations as well where it leaves that open (null) and their bits are to be chosen."""
    if analysis.activations is not None:
        return analysis
    return dataclasses.replace(analysis, activations=getattr(bits, "activations", None) == "mixed")


def solver_for(bits: Any, landscape: bool) -> str | None:
    """The option of the group solver that finds what an allocator scores by; None where none does.

    A landscape needs eigenvalues at least.
    """
    needed = [part for part in parts_of(getattr(bits, "score", "")) if part in MEASURED]
    if not needed:
        return "lanczos" if landscape else None
    if set(needed) == {"eigenvalue", "trace"}:
        return "ggn"
    return FINDERS[needed[0]]


def reconstruction_for(finetune: Any, tuning: Any) -> str:
    """The option of the group reconstruction for a run: the one that takes minutes, where nothing else is trained."""
    return "none" if finetune.num_steps(1) and not tuning.epochs else "descent"
