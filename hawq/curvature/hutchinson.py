"""Hutchinson's trace estimator, stopped by its standard error, plain and with the top of the spectrum taken out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.checks import check_range
from hawq.components import component
from hawq.curvature.lanczos import krylov_start, krylov_step, ritz_pairs
from hawq.curvature.solver import MOST_READINGS, Reading, State, check_tolerance, mean_and_error
from hawq.records import Estimate

_FEWEST = 6  # draws below which a standard error says nothing, even widened


@component("solver/hutchinson", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class Hutchinson(Reading):
    """Tr(H) = E zᵀHz over random signs z (Hutchinson 1990; HAWQ-V2, 1911.03852, §3.1).

    With `rank` > 0 the trace inside a Krylov space Q of that many products is taken exactly and only the rest is
    sampled: Tr(H) = Tr(QᵀHQ) + E z⊥ᵀHz⊥, z⊥ = (I − QQᵀ)z (deflation, the idea of Hutch++, 2010.09649). The few large
    eigenvalues of a network's Hessian, which make nearly all of the variance, are then out of it; and the same
    products give the top eigenvalue.

    Args:
        tolerance: stops once the standard error of the mean is below tolerance · |trace|.
        max_products: most products per block.
        rank: products spent on the Krylov space.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.05
    max_products: int = 1000
    rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        if self.start_from == "subset":
            raise ValueError("start_from='subset' does not fit a trace: give random or gradient")
        check_range("rank", self.rank, least=0, most=MOST_READINGS - 2)
        check_range("max_products", self.max_products, least=self.rank + 2, most=MOST_READINGS)

    @property
    def name(self) -> str:
        """How results call it."""
        return "hutchinson" if self.rank == 0 else "deflated hutchinson"

    @property
    def reads(self) -> str:
        """Products H · state["vector"] (n_i,)."""
        return "products"

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """`seed` decides the signs."""
        state = {**krylov_start(vector), "seed": seed, "draws": [], "done": False, "converged": False}
        return state if self.rank else state | {"basis": [], "vector": _signs(state, vector)}

    def update(self, state: State, reading: Tensor) -> State:
        """One more vector of the Krylov space or one more draw; `reading` is H · state["vector"] (n_i,)."""
        if len(state["alpha"]) < self.rank and not state["invariant"]:
            grown = krylov_step(state, reading)
            if len(grown["alpha"]) < self.rank and not grown["invariant"]:
                return grown
            grown["basis"] = grown["basis"][: len(grown["alpha"])]
            return self._ask(grown, reading)
        drawn = state | {"draws": [*state["draws"], float(state["vector"].dot(reading))]}
        return self._ask(drawn, reading)

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "trace" with its standard error, and "eigenvalue" where `rank` > 0."""
        products, known = len(state["alpha"]) + len(state["draws"]), sum(state["alpha"])
        complete = state["done"] and not state["draws"]
        mean, error = (0.0, 0.0) if complete else mean_and_error(state["draws"])
        found = {"trace": Estimate(known + mean, error, products, state["converged"])}
        if state["alpha"]:
            top = ritz_pairs(state)[-1]
            near = top.error <= self.tolerance * abs(top.value)
            found["eigenvalue"] = Estimate(top.value, top.error, products, near)
        return found

    def _ask(self, state: State, like: Tensor) -> State:
        """Ends, or asks for the product with the next signs outside the Krylov space."""
        if len(state["alpha"]) == len(like):  # the Krylov space is everything: nothing is left to sample
            return state | {"done": True, "converged": True, "basis": []}
        estimate = self.estimates(state)["trace"]
        enough = len(state["draws"]) >= _FEWEST and estimate.error <= self.tolerance * abs(estimate.value)
        if enough or estimate.products >= self.max_products:
            return state | {"done": True, "converged": enough, "basis": []}
        return state | {"vector": _signs(state, like)}


def _signs(state: State, like: Tensor) -> Tensor:
    """The next random signs (n,), less their part in the basis; a function of seed and number."""
    generator = torch.Generator().manual_seed(state["seed"] + len(state["draws"]))
    signs = (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like)
    for _ in range(2):
        for vector in state["basis"]:
            signs -= vector.dot(signs) * vector
    return signs
