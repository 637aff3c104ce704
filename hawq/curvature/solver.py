"""The contract of a solver: it asks for readings of a matrix, one vector at a time, and never sees a network.

A solver is a pair of pure functions, `start` and `update`, over an explicit state. So the caller decides how readings
are made (many blocks share one pass over the data), and a state can be stored and taken up again at any reading.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from scipy.stats import t as student_t
from torch import Tensor

from hawq.records import Estimate

State = dict[str, Any]
"""Plain dictionary of tensors and numbers, so that it can be stored.

Each solver keeps `vector` (the next v to multiply), `done`, and whatever it needs beside them.
"""

CURVATURES = ("hessian", "ggn")
STARTS = ("random", "gradient", "subset")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which matrix a solver reads, where it begins, and in how much memory.

    Args:
        curvature: "hessian" or "ggn", the Gauss-Newton matrix.
        start_from: first vector: "random", the block's own "gradient", or "subset", the eigenvector that the same
            solver finds, from the gradient, on the eighth of the samples whose loss is most curved.
        memory_limit_gib: most memory of the process while it reads; None does not limit it.

    Raises:
        ValueError: a value that is not offered.
    """

    curvature: str = "hessian"
    start_from: str = "random"
    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        for key, allowed in (("curvature", CURVATURES), ("start_from", STARTS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"solver.{key}={getattr(self, key)!r} is unknown: give {', '.join(allowed)}")
        refuse_memory_limit(self.memory_limit_gib)


def refuse_memory_limit(gib: float | None) -> None:
    """Raises ValueError for a limit that is not positive."""
    if gib is not None and not gib > 0:
        raise ValueError(f"solver.memory_limit_gib={gib} is out of range: give a positive number, or null")


class Solver(Protocol):
    """Estimates something of a symmetric matrix from readings alone."""

    @property
    def name(self) -> str: ...

    @property
    def reads(self) -> str:
        """What `update` is given: "products" (H · state["vector"]), "gradients" (∂L/∂W), "sketches" (random s with
        E ‖s‖² = trace), or "nothing"."""
        ...

    @property
    def memory_limit_gib(self) -> float | None: ...

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """State before the first reading; `vector` (n,) is the random or informed start, `seed` is for more draws."""
        ...

    def update(self, state: State, reading: Tensor) -> State:
        """State after receiving one `reading` (n,)."""
        ...

    def estimates(self, state: State) -> dict[str, Estimate]:
        """What is known so far, with its error: "eigenvalue", "smallest", "trace" or "proxy", the main one first."""
        ...


@runtime_checkable
class EigenSolver(Solver, Protocol):
    """A solver that also knows where the eigenvalue lies, so that it can begin on part of the data."""

    def eigenvector(self, state: State) -> Tensor:
        """The unit vector (n,) that a run on more data should start from."""
        ...

    def sharper(self) -> Solver:
        """The same solver with half the tolerance, for that first run."""
        ...


def solve(solver: Solver, multiply: Callable[[Tensor], Tensor], start: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """Runs one solver to its end on one matrix: `multiply` maps state["vector"] (n,) to the reading (n,)."""
    state = solver.start(start, seed)
    while not state["done"]:
        state = solver.update(state, multiply(state["vector"]))
    return solver.estimates(state)


def refuse_tolerance(tolerance: float) -> None:
    """Raises ValueError for a relative error that is not between 0 and 1."""
    if not 0 < tolerance < 1:
        raise ValueError(f"solver.tolerance={tolerance} is out of range: give a number between 0 and 1")


def mean_and_error(draws: Sequence[float]) -> tuple[float, float]:
    """Mean of random draws and its standard error, widened by Student's t so that twice of it holds 95 % of the time
    after few draws too; infinite for fewer than two.
    """
    if len(draws) < 2:
        return draws[0] if draws else 0.0, math.inf
    widened = float(student_t.ppf(0.975, len(draws) - 1)) / 1.96
    return statistics.fmean(draws), widened * statistics.stdev(draws) / math.sqrt(len(draws))


def unit(vector: Tensor) -> Tensor:
    """v / ‖v‖, also where the squares of v are too small for its type; zero stays zero."""
    tiny = torch.finfo(vector.dtype).tiny
    scaled = vector / vector.abs().max().clamp_min(tiny)
    return scaled / scaled.norm().clamp_min(tiny)
