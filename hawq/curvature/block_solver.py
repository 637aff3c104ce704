"""One solver a block, all in step: every pass over the data serves all blocks that are not done yet."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from hawq.curvature.low_rank import LowRank
from hawq.curvature.operator import BlockOperator
from hawq.curvature.output_factor import OutputFactor
from hawq.curvature.solver import EigenSolver, Solver, State
from hawq.distributed import broadcast
from hawq.errors import UserError
from hawq.records import Estimate

SUBSET_SHARE = 0.125  # of the samples, on which an eigenvector is found before all of them are asked

Estimates = dict[str, Estimate]
Listener = Callable[[str, Estimates, bool], None]


class CurvatureCheckpoint(Protocol):
    """Where a half-done analysis is kept."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


def solve_blocks(
    operator: BlockOperator,
    solver: Solver,
    seed: int,
    checkpoint: CurvatureCheckpoint | None = None,
    save_every_seconds: float = 20.0,
    listen: Listener = lambda name, estimates, done: None,
    settled: Callable[[dict[str, Estimates]], bool] = lambda found: False,
) -> dict[str, Estimates]:
    """What the solver finds of every block: name → quantity → estimate.

    With `start_from: subset` each solver first runs on the most influential samples, where a product costs an eighth,
    and begins on all of them at the eigenvector found there; the estimate and its error come from all samples alone.
    A solver that reads rows hands the blocks that they do not settle to one that reads products.

    Args:
        seed: of random vectors; each block's own depends on its name, not on the order of blocks.
        checkpoint: where the newest state is stored every `save_every_seconds`, and taken up again.
        listen: hears (block, estimates, done) after every reading on all samples.
        settled: asked after every round on all samples; True ends all blocks, with the errors that they have by then.

    Raises:
        UserError: a reading that is not finite.
    """
    march = _March(operator, solver, seed, checkpoint, save_every_seconds, listen, settled)
    return march.walk()


class _March:
    """The states of all solvers on their way, and what goes with them into a checkpoint."""

    def __init__(
        self,
        operator: BlockOperator,
        solver: Solver,
        seed: int,
        checkpoint: CurvatureCheckpoint | None,
        save_every_seconds: float,
        listen: Listener,
        settled: Callable[[dict[str, Estimates]], bool],
    ) -> None:
        self._operator, self._solver, self._seed = operator, solver, seed
        self._listen, self._settled = listen, settled
        self._checkpoint, self._save_every, self._saved = checkpoint, save_every_seconds, time.monotonic()
        self._solvers = dict.fromkeys(operator.names, solver)
        self._opening = self._choose_opening()
        self._states: dict[str, State] = {}
        self._rounds = 0
        self._seconds = dict.fromkeys(operator.names, 0.0)

    def walk(self) -> dict[str, Estimates]:
        self._resume()
        if self._opening == "subset":
            self._walk_subset()
        elif self._opening == "rows":
            self._walk_rows()
        if not self._states:
            self._states = self._begin(self._operator)
        if not self._opening:
            self._until_done(self._operator)
        return self._found()

    def _choose_opening(self) -> str:
        """What comes before the products of all samples: "subset", "rows", or "" for nothing."""
        solver = self._solver
        if not isinstance(solver, LowRank):
            return "subset" if getattr(solver, "start_from", "random") == "subset" else ""
        operator = self._operator
        if operator.sees_samples_alone and (solver.curvature == "ggn" or operator.trace_is_gauss_newtons):
            most = min(solver.rows, operator.vectors_that_fit) if solver.keeps_rows else solver.rows
            self._factor = OutputFactor(operator, most, solver.rest, self._own_seed("signs"))
            if self._factor.is_factor:
                self._solver = replace(solver, rows=self._factor.num_heads)
                self._solvers = dict.fromkeys(operator.names, self._solver)
                return "rows"
        self._solvers = dict.fromkeys(operator.names, solver.otherwise())
        return ""

    def _walk_subset(self) -> None:
        solver, small = self._solver, self._operator.subset(SUBSET_SHARE)
        assert isinstance(solver, EigenSolver)
        self._solvers = dict.fromkeys(small.names, solver.sharper())
        if not self._states:
            self._states = self._begin(small)
        self._until_done(small)
        self._solvers = dict.fromkeys(small.names, solver)
        self._states = {name: self._start(name, solver.eigenvector(state)) for name, state in self._states.items()}
        self._opening, self._rounds = "", 0

    def _walk_rows(self) -> None:
        """What rows do not settle goes on with products, from the top of what they showed."""
        if not self._states:
            self._states = self._begin(self._operator)
        if self._until_done(self._operator):
            return
        self._opening = ""
        self._ask_for_products([name for name, state in self._states.items() if not state["converged"]])
        for name in self._by_products():
            self._states[name] = self._start(name, self._states[name]["vector"])

    def _ask_for_products(self, names: Iterable[str]) -> None:
        for name in names:
            assert isinstance(self._solver, LowRank)
            self._solvers[name] = self._solver.otherwise()

    def _by_products(self) -> list[str]:
        """Blocks that were handed to another solver."""
        handed = isinstance(self._solver, LowRank)
        return [name for name, solver in self._solvers.items() if handed and solver is not self._solver]

    def _start(self, name: str, vector: Tensor) -> State:
        return self._solvers[name].start(vector, self._own_seed(name))

    def _begin(self, operator: BlockOperator) -> dict[str, State]:
        """Random starts, or gradients; a gradient of zero says nothing and is replaced."""
        vectors = {name: operator.random_vector(name, self._generator(name)) for name in operator.names}
        starts = {getattr(solver, "start_from", "random") for solver in self._solvers.values()}
        if starts != {"random"}:
            vectors |= {name: vector for name, vector in operator.gradients().items() if bool(vector.any())}
        return {name: self._start(name, vector) for name, vector in vectors.items()}

    def _until_done(self, operator: BlockOperator) -> bool:
        """Reads until all solvers have what they want; True when `settled` ended it before."""
        while waiting := {name: state["vector"] for name, state in self._states.items() if not state["done"]}:
            before = dict(operator.seconds)
            for name, reading in self._read(operator, waiting).items():
                if not bool(reading.isfinite().all()):
                    raise UserError(f"the curvature of block {name!r} is not finite: check the weights and the loss")
                self._states[name] = self._solvers[name].update(self._states[name], reading)
                self._seconds[name] += operator.seconds[name] - before[name]
                if operator is self._operator:
                    self._listen(name, self._estimates(name), self._is_final(name))
            self._rounds += 1
            self._save()
            if operator is self._operator and broadcast(self._settled(self._found())):
                operator.release()
                return True
        operator.release()
        return False

    def _is_final(self, name: str) -> bool:
        """Whether a block is done and will not go on with products."""
        state = self._states[name]
        return bool(state["done"] and (not self._opening or state["converged"]))

    def _read(self, operator: BlockOperator, waiting: dict[str, Tensor]) -> dict[str, Tensor]:
        reads = self._solvers[next(iter(waiting))].reads
        if reads == "products":
            return operator.products(waiting)
        if reads == "gradients":
            rows = operator.gradients()
        elif reads == "rows":
            rows = self._factor.row(self._rounds)
        else:
            rows = operator.sketches(self._own_seed(f"sketch {self._rounds}"))
        return {name: rows[name] for name in waiting}

    def _found(self) -> dict[str, Estimates]:
        return {name: self._estimates(name) for name in self._states}

    def _estimates(self, name: str) -> Estimates:
        """What the solver knows, with its cost so far."""
        seconds, unit = self._seconds[name], self._operator.gradient_seconds
        gradients = seconds / unit if unit else None
        found = self._solvers[name].estimates(self._states[name])
        return {
            quantity: replace(estimate, seconds=seconds, gradient_equivalents=gradients)
            for quantity, estimate in found.items()
        }

    def _save(self) -> None:
        if self._checkpoint is None or time.monotonic() - self._saved < self._save_every:
            return
        kept = {"rounds": self._rounds, "seconds": self._seconds, "opening": self._opening, "states": self._states}
        kept["by_products"] = self._by_products()
        self._checkpoint.save(kept)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        """The stored state of the first process, on every process."""
        kept = broadcast(self._checkpoint.load() if self._checkpoint else None)
        if kept is None:
            return
        self._rounds, self._seconds, self._opening = kept["rounds"], kept["seconds"], kept["opening"]
        self._ask_for_products(kept["by_products"])
        self._states = {name: _moved(state, self._operator.device) for name, state in kept["states"].items()}

    def _own_seed(self, name: str) -> int:
        """A seed that depends on the run's and the name only, not on the order of blocks."""
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._own_seed(name))


def _moved(value: Any, device: torch.device) -> Any:
    """The same state with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return [_moved(item, device) for item in value] if isinstance(value, list) else value
