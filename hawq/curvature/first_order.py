"""What curvature is compared with: the size of the gradient, and chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.components import component
from hawq.curvature.solver import State, refuse_memory_limit
from hawq.records import Estimate


@component("solver/gradient", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class GradientNorm:
    """‖g_i‖ in place of λ_i: first-order sensitivity, which at a minimum says nothing (1905.03696, §1).

    Raises ValueError for a memory limit that is not positive.
    """

    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        refuse_memory_limit(self.memory_limit_gib)

    @property
    def name(self) -> str:
        return "gradient"

    @property
    def reads(self) -> str:
        return "gradients"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`vector` and `seed` are not used: nothing is drawn."""
        return {"vector": vector[:0], "value": math.nan, "done": False}

    def update(self, state: State, reading: Tensor) -> State:
        return state | {"value": float(reading.norm()), "done": True}

    def estimates(self, state: State) -> dict[str, Estimate]:
        return {"proxy": Estimate(state["value"], 0.0 if state["done"] else math.inf, 0, state["done"])}


@component("solver/random")
@dataclass(frozen=True)
class RandomScore:
    """A number between 0 and 1 in place of λ_i, a function of the seed: what any score has to beat."""

    @property
    def name(self) -> str:
        return "random"

    @property
    def reads(self) -> str:
        return "nothing"

    @property
    def memory_limit_gib(self) -> None:
        return None

    def start(self, vector: Tensor, seed: int = 0) -> State:
        value = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
        return {"vector": vector[:0], "value": value, "done": True}

    def update(self, state: State, reading: Tensor) -> State:
        return state

    def estimates(self, state: State) -> dict[str, Estimate]:
        return {"proxy": Estimate(state["value"], 0.0, 0, True)}
