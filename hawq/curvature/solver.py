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
from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes half a second to import
from torch import Tensor

from hawq.checks import check_choice, check_range
from hawq.records import Estimate

State = dict[str, Any]
"""Plain dictionary of tensors and numbers, so that it can be stored.

Each solver keeps `vector` (the next v to multiply), `done`, and whatever it needs beside them.
"""

CURVATURES = ("hessian", "ggn")
STARTS = ("random", "gradient", "subset")
ALL, SUBSET, REST = "all", "subset", "rest"
"""Parts of the samples that a product may be asked of (`SplitSolver`)."""

MOST_READINGS = 10**6  # that any solver may be asked to make per block
READS = ("products", "gradients", "sketches", "rows", "nothing")


class Solver(Protocol):
    """Estimates something of a symmetric matrix from readings alone. `SolverDefaults` has what most leave as it is."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def reads(self) -> str:
        """What `update` is given, one of `READS`: "products" (H · state["vector"]), "gradients" (∂L/∂W), "sketches"
        (random s with E ‖s‖² = trace), "rows" (see `RowSolver`) or "nothing"."""
        ...

    @property
    def curvature(self) -> str:
        """Which matrix it reads, one of `CURVATURES`."""
        ...

    @property
    def start_from(self) -> str:
        """The vector that `start` is to be given, one of `STARTS`."""
        ...

    @property
    def tolerance(self) -> float | None:
        """The relative error that it stops at; None where it has no error to bring down."""
        ...

    @property
    def memory_limit_gib(self) -> float | None:
        """Most memory of the process while it reads; None: a share of what is free at the start."""
        ...

    def start(self, vector: Tensor, seed: int = 0) -> State:
        """State before the first reading; `vector` (n,) is the random or informed start, `seed` is for more draws."""
        ...

    def update(self, state: State, reading: Tensor) -> State:
        """State after one more `reading` (n,)."""
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


@runtime_checkable
class SplitSolver(EigenSolver, Protocol):
    """A solver that goes on from a subset without losing what it knows of it: H = s · A + (1 − s) · D.

    Its later states say in state["part"] of which samples they want the product: `ALL`, `SUBSET` (A) or `REST` (D).
    """

    def for_subset(self) -> SplitSolver:
        """The solver for the subset, whose last state can be carried on."""
        ...

    def start(self, vector: Tensor, seed: int = 0, rows: Tensor | None = None) -> State:
        """As every solver's; `rows` U (m, n) are known with UᵀU near the matrix."""
        ...

    def carried(self, state: State, share: float) -> State | None:
        """The state on all samples, s = `share` of which were in the run that ended in `state`; None to start anew."""
        ...


@runtime_checkable
class RowSolver(Solver, Protocol):
    """A solver that reads the rows of the Gauss-Newton matrix, then sketches of the other rows (`OutputFactor`)."""

    @property
    def rows(self) -> int:
        """Most rows that it is given one by one."""
        ...

    @property
    def keeps_rows(self) -> bool:
        """Whether all rows are held until the last of them has come."""
        ...

    @property
    def rest(self) -> float:
        """Share of the curvature of the outputs that is not worth rows of its own."""
        ...

    def with_rows(self, count: int) -> Solver:
        """The same solver for exactly `count` rows."""
        ...

    def otherwise(self) -> Solver:
        """The solver that finds the same by products, where rows do not settle it."""
        ...


class SolverDefaults:
    """What a solver leaves as it is unless it says otherwise: see `Solver` for the meaning of each."""

    curvature: str = "hessian"
    start_from: str = "random"
    tolerance: float | None = None
    memory_limit_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which matrix a solver reads, where it begins, and in how much memory.

    Args:
        curvature: "hessian" or "ggn", the Gauss-Newton matrix.
        start_from: first vector: "random", the block's own "gradient", or "subset", the eigenvector that the same
            solver finds, from the gradient, on the eighth of the samples whose loss is most curved.
        memory_limit_gib: most memory of the process while it reads; None: a share of what is free at the start.

    Raises:
        ValueError: a value that is not offered.
    """

    curvature: str = "hessian"
    start_from: str = "random"
    memory_limit_gib: float | None = None

    def __post_init__(self) -> None:
        check_choice("curvature", self.curvature, CURVATURES)
        check_choice("start_from", self.start_from, STARTS)
        check_memory_limit(self.memory_limit_gib)


def solve(solver: Solver, multiply: Callable[[Tensor], Tensor], start: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """Runs one solver to its end on one matrix: `multiply` maps state["vector"] (n,) to the reading (n,)."""
    state = solver.start(start, seed)
    while not state["done"]:
        state = solver.update(state, multiply(state["vector"]))
    return solver.estimates(state)


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError for a relative error that is not between 0 and 1."""
    check_range("tolerance", tolerance, above=0, below=1)


def check_memory_limit(gib: float | None) -> None:
    """Raises ValueError for a limit in GiB that is not positive; None is no limit."""
    check_range("memory_limit_gib", gib, above=0, optional=True)


STANDARD = 0.68
"""The confidence of a standard error."""


def mean_and_error(draws: Sequence[float]) -> tuple[float, float]:
    """Mean of random draws and its standard error, widened by Student's t so that twice of it holds 95 % of the time
    after few draws too; infinite for fewer than two.
    """
    if len(draws) < 2:
        return draws[0] if draws else 0.0, math.inf
    widened = float(stdtrit(len(draws) - 1, 0.975)) / 1.96
    return statistics.fmean(draws), widened * statistics.stdev(draws) / math.sqrt(len(draws))


def unit(vector: Tensor) -> Tensor:
    """v / ‖v‖, also where the squares of v are too small for its type; zero stays zero."""
    tiny = torch.finfo(vector.dtype).tiny
    scaled = vector / vector.abs().max().clamp_min(tiny)
    return scaled / scaled.norm().clamp_min(tiny)
