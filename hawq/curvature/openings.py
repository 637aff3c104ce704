"""The phases of an analysis: what is read first, and where the products of all samples begin after it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator
from hawq.curvature.output_factor import OutputFactor
from hawq.curvature.solver import ALL, REST, SUBSET, EigenSolver, RowSolver, Solver, SplitSolver, State
from hawq.curvature.split import Split, split
from hawq.distributed import all_gather

SUBSET_SHARE = 0.125  # of the samples, on which an eigenvector is found before all of them are asked
_HEADS = 32  # rows that a search begins at the top of
_ROOMY = 4  # times as many vectors as these rows must fit, for them to be kept beside the solver's own
_REST = 0.005  # of the curvature of the outputs, for which no further row is read
_NARROW = 128  # outputs of a sample, up to which their curvature is cheap to decompose

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

    @property
    def operators(self) -> list[BlockOperator]:
        """What the readings of this phase come from."""
        return [self.operator]

    def read(self, waiting: States, number: int) -> dict[str, Tensor]:
        """One reading (n_i,) for each waiting block; `number` counts the readings of this phase."""
        reads = self.solvers[next(iter(waiting))].reads
        if reads == "products":
            return self.operator.products({name: state["vector"] for name, state in waiting.items()})
        if reads == "gradients":
            rows = self.operator.gradients()
        else:
            rows = self.operator.sketches(self.seeds.of(f"sketch {number}"))
        return {name: rows[name] for name in waiting}

    @property
    def gradient_seconds(self) -> float:
        """Seconds of one forward and first backward over all samples of this process; 0 if none was made."""
        return sum(operator.cost.gradient_seconds for operator in self.operators)

    def seconds(self) -> dict[str, float]:
        """Seconds per block so far."""
        return {n: sum(operator.cost.seconds[n] for operator in self.operators) for n in self.operator.names}

    def release(self) -> None:
        """Drops the graphs that were kept for a next reading."""
        for operator in self.operators:
            operator.release()

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

    def begin(self) -> States:
        """Starts at the top of the heaviest rows."""
        vectors = informed(self.operator, self.seeds, heaviest_rows(self.operator, self.seeds))
        return {name: self.start(name, vector) for name, vector in vectors.items()}

    def is_last_of(self, state: State) -> bool:
        """Never: all samples follow."""
        return False

    def then(self, unsettled: Sequence[str]) -> Phase:
        """Products of all samples."""
        return Phase(self._all, self._then, self.seeds)

    def hand_on(self, states: States, following: Phase) -> States:
        """Starts at the eigenvectors of the subset."""
        return {name: following.start(name, self._then[name].eigenvector(state)) for name, state in states.items()}


class SplitSubsetPhase(SubsetPhase):
    """First the samples that hold nearly all curvature, with a bound on what is missed there; the others follow."""

    def __init__(self, operator: BlockOperator, solvers: Mapping[str, SplitSolver], parts: Split, seeds: Seeds) -> None:
        Phase.__init__(self, parts.subset, {name: s.for_subset() for name, s in solvers.items()}, seeds)
        self._then, self._all, self._parts, self._carries = solvers, operator, parts, solvers
        self._starts = {name: s.for_subset() for name, s in solvers.items()}

    def begin(self) -> States:
        """Starts at the top of the heaviest rows, which stay known where memory allows."""
        rows = heaviest_rows(self.operator, self.seeds)
        kept = rows if self.operator.vectors_that_fit >= _ROOMY * _HEADS else None
        return {
            name: self._starts[name].start(vector, self.seeds.of(name), None if kept is None else kept[name])
            for name, vector in informed(self.operator, self.seeds, rows).items()
        }

    def then(self, unsettled: Sequence[str]) -> Phase:
        """Products of the rest, and more of the subset where they are wanted."""
        return _SplitPhase(self._all, self._then, self._parts, self.seeds)

    def hand_on(self, states: States, following: Phase) -> States:
        """The states of the subset, carried on."""
        fresh = super().hand_on(states, following)
        carried = {name: self._carries[name].carried(state, self._parts.share) for name, state in states.items()}
        return {name: carried[name] or fresh[name] for name in states}


class _SplitPhase(Phase):
    """Products of the part of the samples that each state asks for."""

    def __init__(self, operator: BlockOperator, solvers: Mapping[str, Solver], parts: Split, seeds: Seeds) -> None:
        super().__init__(operator, solvers, seeds)
        self._parts = parts

    @property
    def operators(self) -> list[BlockOperator]:
        """Subset and rest."""
        return [self._parts.subset, self._parts.rest]

    def read(self, waiting: States, number: int) -> dict[str, Tensor]:
        """A · v, D · v, or s A · v + (1 − s) D · v."""
        wanted = {
            part: {name: state["vector"] for name, state in waiting.items() if state["part"] in (part, ALL)}
            for part in (SUBSET, REST)
        }
        subset, rest = self._parts.subset.products(wanted[SUBSET]), self._parts.rest.products(wanted[REST])
        share = self._parts.share
        whole = {name: share * subset[name] + (1 - share) * rest[name] for name in subset if name in rest}
        return subset | rest | whole


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

    def read(self, waiting: States, number: int) -> dict[str, Tensor]:
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


def heaviest_rows(operator: BlockOperator, seeds: Seeds) -> dict[str, Tensor] | None:
    """For every block the heaviest rows R (m, n_i) of the Gauss-Newton matrix; None where they are not cheap.

    That is, where the network sees samples alone, and their outputs are few enough to decompose their curvature.
    """
    outputs = operator.outputs
    if not all(all_gather(not operator.influence or (outputs is not None and outputs.shape[1] <= _NARROW))):
        return None
    if not operator.sees_samples_alone:
        return None
    factor = OutputFactor(operator, min(_HEADS, operator.vectors_that_fit), _REST, seeds.of("signs"))
    if not factor.is_factor or not factor.num_heads:
        return None
    rows = [factor.row(index) for index in range(factor.num_heads)]
    return {name: torch.stack([row[name] for row in rows]) for name in operator.names}


def informed(operator: BlockOperator, seeds: Seeds, rows: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """For every block a vector (n_i,) that is likely to be near the top of the spectrum.

    The top of RᵀR where there are rows, else the gradient, or a random vector where that is zero.
    """
    vectors = {name: seeds.vector(operator, name) for name in operator.names}
    found = operator.gradients() if rows is None else {name: _top(matrix) for name, matrix in rows.items()}
    return vectors | {name: vector for name, vector in found.items() if bool(vector.any())}


def _top(rows: Tensor) -> Tensor:
    """The eigenvector (n,) of the largest eigenvalue of RᵀR, R (m, n); not normalised."""
    return rows.T @ torch.linalg.eigh(rows @ rows.T)[1][:, -1]


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
        parts = split(operator) if isinstance(solver, SplitSolver) else None
        if parts is not None and isinstance(solver, SplitSolver):
            return SplitSubsetPhase(operator, dict.fromkeys(operator.names, solver), parts, seeds)
        return SubsetPhase(operator, dict.fromkeys(operator.names, solver), seeds)
    return Phase(operator, dict.fromkeys(operator.names, solver), seeds)
