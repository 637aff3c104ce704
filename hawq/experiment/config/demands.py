"""What one section of a config asks of another, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hawq.components import component_name
from hawq.records import BEYOND_CURVATURE, MEASURED

_FINDS = {
    "solver/lanczos": ("eigenvalue",),
    "solver/power": ("eigenvalue",),
    "solver/hutchinson": ("trace", "eigenvalue"),
    "solver/low_rank": ("eigenvalue", "trace"),
    "solver/fisher": ("trace",),
    "solver/gradient": ("proxy",),
    "solver/random": ("proxy",),
    "solver/none": (),
}
"""Solver → the scores by curvature that it may find."""

_REMEDY = {"eigenvalue": "solver=lanczos", "trace": "solver=trace", "proxy": "solver=gradient"}


def check_demands(parts: Mapping[str, Any]) -> None:
    """Raises ValueError, in one sentence, where the analysis cannot find what another section needs.

    `parts` are built components by name, all of those that a run with an analysis has.
    """
    analysis, solver, bits = parts["analysis"], parts["solver"], parts["bits"]
    score, name = getattr(bits, "score", "auto"), component_name(type(solver)) or ""
    if score in MEASURED and score not in _FINDS.get(name, MEASURED):
        others, chosen = ", ".join((*_FINDS[name], *BEYOND_CURVATURE, "error")), name.removeprefix("solver/")
        raise ValueError(
            f"bits.score={score} is not found by solver={chosen}: give {_REMEDY[score]}, "
            f"or one of {others} as bits.score"
        )
    if any(component_name(type(one)) == "solver/none" for one in parts["compared"].values()):
        raise ValueError("validate.solvers names none, which has no score: leave it out")
    mixed = getattr(bits, "activations", None) == "mixed"
    if mixed and not getattr(analysis, "activations", True):
        raise ValueError(
            "bits.activations=mixed needs the sensitivity to activations: give analysis.activations=true, or bits of "
            "all activations, say bits.activations=8"
        )
    if mixed and score in ("quadratic", "relative_error"):
        raise ValueError(f"bits.score={score} says nothing of activations: give bits.score=kl, or bits.activations=8")
    if getattr(analysis, "loss", None) == "distillation" and solver.reads in ("gradients", "sketches"):
        raise ValueError(
            "analysis.loss=distillation has no gradient at the float network, which is all that this solver reads: "
            "give solver=lanczos, trace or ggn, or analysis.loss=cross_entropy"
        )
