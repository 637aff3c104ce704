"""The phases of an analysis: what is read first, and where the products of all samples begin after it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator
from hawq.curvature.output_factor import OutputFactor
from hawq.curvature.solver import EigenSolver, RowSolver, Solver, State

SUBSET_SHARE = 0.125  # of the samples, on which an eigenvector is found before all of them are asked

States = dict[str, State]
"""Block → the state of its solver."""


@dataclass(frozen=True)
class Seeds:
    """Seeds that depend on the run's seed and a name only, not on the order of blocks."""

    run: int

    def of(self, name: str) -> int:
        """The seed of one block, or of another named draw."""
        digest = hashlib.sha256(f"{self.run}:{name}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def vector(self, operator: BlockOperator, name: str) -> Tensor:
        """A standard normal vector (n_i,) for one block."""
        return operator.random_vector(name, torch.Generator().manual_seed(self.of(name)))


class Phase:
    """Readings of all samples, from random vectors or gradients, until every solver has what it wants.

    Args:
        operator: what is read.
        solvers: block → its solver.
        seeds: of vectors and other draws.
    """

    name = ""
    """How a checkpoint calls the phase."""

    speaks = True
    """Whether estimates of this phase are about all samples."""

    def __init__(self, operator: BlockOperator, solvers: Mapping[str, Solver], seeds: Seeds) -> None:
        self.operator, self.solvers, self.seeds = operator, dict(solvers), seeds
        self.by_products: list[str] = []
        """Blocks that an earlier phase has left to products."""

    def begin(self) -> States:
        """The states before the first reading. A gradient of zero says nothing; a random vector takes its place."""
        vectors = {name: self.seeds.vector(self.operator, name) for name in self.operator.names}
        if any(solver.start_from != "random" for solver in self.solvers.values()):
            vectors |= {name: vector for name, vector in self.operator.gradients().items() if bool(vector.any())}
        return {name: self.start(name, vector) for name, vector in vectors.items()}

    def start(self, name: str, vector: Tensor) -> State:
        """The state of one block's solver before its first reading; `vector` (n_i,)."""
        return self.solvers[name].start(vector, self.seeds.of(name))

    def read(self, waiting: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """One reading (n_i,) for each waiting block; `number` counts the readings of this phase."""
        reads = self.solvers[next(iter(waiting))].reads
        if reads == "products":
            return self.operator.products(waiting)
        if reads == "gradients":
            rows = self.operator.gradients()
        else:
            rows = self.operator.sketches(self.seeds.of(f"sketch {number}"))
        return {name: rows[name] for name in waiting}

    def is_last_of(self, state: State) -> bool:
        """Whether a block in this state will not be read again, in this phase or a later one."""
        return bool(state["done"])

    def unsettled(self, states: States) -> list[str]:
        """The blocks that this phase leaves to the products after it."""
        return []

    def then(self, unsettled: Sequence[str]) -> Phase | None:
        """The phase after this one, given the blocks that it leaves; None after the last."""
        return None

    def hand_on(self, states: States, following: Phase) -> States:
        """The states that the following phase begins with."""
        return states


class SubsetPhase(Phase):
    """First the eighth of the samples whose loss is most curved, where a product costs an eighth.

    All samples then begin at the eigenvectors found there. `solvers` are those of all samples.
    """

    name, speaks = "subset", False

    def __init__(self, operator: BlockOperator, solvers: Mapping[str, EigenSolver], seeds: Seeds) -> None:
        super().__init__(operator.subset(SUBSET_SHARE), {name: s.sharper() for name, s in solvers.items()}, seeds)
        self._then, self._all = solvers, operator

    def is_last_of(self, state: State) -> bool:
        """Never: all samples follow."""
        return False

    def then(self, unsettled: Sequence[str]) -> Phase:
        """Products of all samples."""
        return Phase(self._all, self._then, self.seeds)

    def hand_on(self, states: States, following: Phase) -> States:
        """Starts at the eigenvectors of the subset."""
        return {name: following.start(name, self._then[name].eigenvector(state)) for name, state in states.items()}


class RowsPhase(Phase):
    """First the rows of the Gauss-Newton matrix; what they do not settle goes on with products, from their top.

    Args:
        operator: of all samples.
        solver: of every block.
        factor: where rows come from.
        seeds: of other draws.
    """

    name = "rows"

    def __init__(self, operator: BlockOperator, solver: RowSolver, factor: OutputFactor, seeds: Seeds) -> None:
        super().__init__(operator, dict.fromkeys(operator.names, solver.with_rows(factor.num_heads)), seeds)
        self._factor, self._otherwise = factor, solver.otherwise()

    def read(self, waiting: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Row `number`, or a sketch of the other rows after the last."""
        rows = self._factor.row(number)
        return {name: rows[name] for name in waiting}

    def is_last_of(self, state: State) -> bool:
        """Whether rows have settled the block."""
        return bool(state["done"] and state["converged"])

    def unsettled(self, states: States) -> list[str]:
        """The blocks whose rest is too large for the tolerance."""
        return [name for name, state in states.items() if not state["converged"]]

    def then(self, unsettled: Sequence[str]) -> Phase:
        """Products for the blocks that rows did not settle."""
        following = Phase(self.operator, self.solvers | dict.fromkeys(unsettled, self._otherwise), self.seeds)
        following.by_products = list(unsettled)
        return following

    def hand_on(self, states: States, following: Phase) -> States:
        """Starts at the top of the rows for the blocks that go on; the others stay as they are."""
        return states | {name: following.start(name, states[name]["vector"]) for name in following.by_products}


def opening(operator: BlockOperator, solver: Solver, seeds: Seeds) -> Phase:
    """The first phase of an analysis: what `solver` asks for, where the network allows it."""
    if isinstance(solver, RowSolver):
        if operator.sees_samples_alone and (solver.curvature == "ggn" or operator.trace_is_gauss_newtons):
            most = min(solver.rows, operator.vectors_that_fit) if solver.keeps_rows else solver.rows
            factor = OutputFactor(operator, most, solver.rest, seeds.of("signs"))
            if factor.is_factor:
                return RowsPhase(operator, solver, factor, seeds)
        solver = solver.otherwise()
    elif solver.start_from == "subset" and isinstance(solver, EigenSolver):
        return SubsetPhase(operator, dict.fromkeys(operator.names, solver), seeds)
    return Phase(operator, dict.fromkeys(operator.names, solver), seeds)
