"""What curvature is compared with: the size of the gradient, and chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.components import component
from hawq.curvature.solver import SolverDefaults, State, check_memory_limit
from hawq.records import Estimate


@component("solver/gradient", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class GradientNorm(SolverDefaults):
    """‖g_i‖ in place of λ_i: first-order sensitivity, which at a minimum says nothing (1905.03696, §1).

    Args:
        memory_limit_gib: most memory of the process while it reads; None: a share of what is free at the start.

    Raises:
        ValueError: a memory limit that is not positive.
    """

    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        check_memory_limit(self.memory_limit_gib)

    @property
    def name(self) -> str:
        """How results call it."""
        return "gradient"

    @property
    def reads(self) -> str:
        """The gradient (n_i,) of each block."""
        return "gradients"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """Before the gradient has come; `vector` and `seed` are not used."""
        return {"vector": vector[:0], "value": math.nan, "done": False}

    def update(self, state: State, reading: Tensor) -> State:
        """The end; `reading` is the gradient (n_i,)."""
        return state | {"value": float(reading.norm()), "done": True}

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "proxy", without an error."""
        return {"proxy": Estimate(state["value"], 0.0 if state["done"] else math.inf, 0, state["done"])}


@component("solver/random")
@dataclass(frozen=True)
class RandomScore(SolverDefaults):
    """A number between 0 and 1 in place of λ_i, a function of the seed: what any score has to beat."""

    @property
    def name(self) -> str:
        """How results call it."""
        return "random"

    @property
    def reads(self) -> str:
        """Nothing: the score is drawn at the start."""
        return "nothing"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """The end; `seed` decides the score."""
        value = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
        return {"vector": vector[:0], "value": value, "done": True}

    def update(self, state: State, reading: Tensor) -> State:
        """The same state: it was done at the start."""
        return state

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "proxy", without an error."""
        return {"proxy": Estimate(state["value"], 0.0, 0, True)}


@component("solver/none")
@dataclass(frozen=True)
class NoCurvature(SolverDefaults):
    """Measures nothing: for allocations by a score that needs no curvature (kl, error, ...)."""

    @property
    def name(self) -> str:
        """How results call it."""
        return "none"

    @property
    def reads(self) -> str:
        """Nothing."""
        return "nothing"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """The end; nothing is used."""
        return {"vector": vector[:0], "done": True}

    def update(self, state: State, reading: Tensor) -> State:
        """The same state: it was done at the start."""
        return state

    def estimates(self, state: State) -> dict[str, Estimate]:
        """None."""
        return {}


@component("solver/auto", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class AutoSolver(NoCurvature):
    """Stands for the solver that finds what bits are chosen by: a run of train.py puts that in its place.

    Where they are chosen by nothing that a solver finds, it stays, and measures nothing.

    Args:
        memory_limit_gib: of the solver that takes its place, and of the scores that are measured.

    Raises:
        ValueError: a memory limit that is not positive.
    """

    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        check_memory_limit(self.memory_limit_gib)
