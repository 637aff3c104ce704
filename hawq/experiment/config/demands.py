"""What one section of a config asks of another, checked before any work starts."""

from __future__ import annotations

from hawq.components import component_name
from hawq.experiment.config.automatic import FINDERS
from hawq.experiment.config.options import Settings
from hawq.experiment.table import wanted_stages
from hawq.records import MEASURED, parts_of

_FINDS = {
    "solver/lanczos": ("eigenvalue",),
    "solver/power": ("eigenvalue",),
    "solver/hutchinson": ("trace", "eigenvalue"),
    "solver/low_rank": ("eigenvalue", "trace"),
    "solver/fisher": ("trace",),
    "solver/gradient": ("proxy",),
    "solver/random": ("proxy",),
    "solver/none": (),
    "solver/auto": (),
}
"""Solver → the scores by curvature that it may find."""


def check_demands(settings: Settings) -> None:
    """Raises ValueError, in one sentence, where the analysis will not find what another section needs."""
    analysis, solver, bits = settings.analysis, settings.solver, settings.bits
    name, chosen = component_name(type(solver)) or "", solver.name
    stages = [stage.name for stage in wanted_stages(settings.options.stages)]
    if "allocation" in stages or "validate" in stages:
        _check_score(getattr(bits, "score", "auto"), name)
    if "allocation" in stages and getattr(bits, "activations", None) == "mixed":
        _check_mixed(getattr(bits, "score", "auto"), bool(analysis.activations))
    if "validate" in stages and any(component_name(type(one)) == "solver/none" for one in settings.compared.values()):
        raise ValueError("validate.solvers names none, which has no score: leave it out")
    if analysis.loss == "distillation" and solver.reads in ("gradients", "sketches"):
        raise ValueError(
            f"analysis.loss=distillation has no gradient at the float network, and solver={chosen} reads nothing else: "
            "give solver=lanczos, trace or ggn, or analysis.loss=cross_entropy"
        )
    if "finetune" in stages:
        _check_order(settings)
        _check_teachers(settings)
    if "tuning" in stages and settings.tuning.epochs and _method(settings) == "none":
        raise ValueError(
            f"tuning.epochs={settings.tuning.epochs} needs a reconstructed network: give reconstruction=descent, or "
            "tuning.epochs=0"
        )
    named = (*analysis.scores, *parts_of(getattr(bits, "score", "auto")))
    if analysis.loss == "distillation" and "output_shift" in named:
        raise ValueError(
            "analysis.loss=distillation has no gradient at the float network, by which score output_shift weighs: "
            "leave that score out, or give analysis.loss=cross_entropy"
        )
    compared = settings.validate.scores if "validate" in stages else ()
    if "learned_steps" in (*named, *compared):
        from hawq.scoring.joint_training import refuse_fixed_steps  # here, because it loads torch

        refuse_fixed_steps(settings.quantizer, activations=bool(analysis.activations))


def _check_order(settings: Settings) -> None:
    """Raises ValueError for an order that could not show: reconstruction quantises all blocks before training."""
    finetune = settings.finetune
    method = _method(settings)
    if finetune.epochs and finetune.max_steps != 0 and finetune.order != "joint" and method != "none":
        raise ValueError(
            f"reconstruction={method} quantises all blocks before training, so finetune.order={finetune.order} has no "
            "effect: give finetune.order=joint, or reconstruction=none"
        )


def _check_teachers(settings: Settings) -> None:
    """Raises ValueError for teachers that nothing learns from."""
    if not settings.teachers:
        return
    if not settings.finetune.distillation:
        raise ValueError(
            "teachers have no effect with finetune.distillation=0: give finetune.distillation=0.5, or leave them out"
        )
    if not settings.finetune.num_steps(1):
        raise ValueError("teachers have no effect with no fine-tuning: give finetune.epochs=1, or leave them out")


def _method(settings: Settings) -> str:
    """Of the reconstruction."""
    return (component_name(type(settings.reconstruction)) or "none").removeprefix("reconstruction/")


def _check_score(score: str, solver: str) -> None:
    """Raises ValueError for a score by curvature that the solver (its declared name) never finds."""
    found = _FINDS.get(solver, MEASURED)
    for part in parts_of(score):
        if part in MEASURED and part not in found:
            others = " or ".join(f"bits.score={one}" for one in (*found, "kl"))
            chosen = solver.removeprefix("solver/")
            raise ValueError(
                f"the analysis has no {part}, which bits.score={score} needs and solver={chosen} does not find: "
                f"give solver={FINDERS[part]}, or {others}"
            )


def _check_mixed(score: str, analysed: bool) -> None:
    """Raises ValueError where mixed activations have no score."""
    if not analysed:
        raise ValueError(
            "bits.activations=mixed needs the sensitivity to activations: leave analysis.activations=false out, or "
            "give the bits of all activations, say bits.activations=8"
        )
    if {"quadratic", "relative_error"} & set(parts_of(score)):
        raise ValueError(f"bits.score={score} says nothing of activations: give bits.score=kl, or bits.activations=8")
