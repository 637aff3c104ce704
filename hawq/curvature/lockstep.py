"""One solver a block, all in step: every pass over the data serves all blocks that are not done yet."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator
from hawq.curvature.solver import EigenSolver, Solver, State
from hawq.distributed import from_first
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
        self._on_subset = getattr(solver, "start_from", "random") == "subset"
        self._states: dict[str, State] = {}
        self._rounds = 0
        self._seconds = dict.fromkeys(operator.names, 0.0)

    def walk(self) -> dict[str, Estimates]:
        self._resume()
        if self._on_subset:
            self._walk_subset()
        if not self._states:
            self._states = self._begin(self._operator, self._solver)
        self._until_done(self._operator, self._solver)
        return self._found()

    def _walk_subset(self) -> None:
        solver, small = self._solver, self._operator.subset(SUBSET_SHARE)
        assert isinstance(solver, EigenSolver)
        sharper = solver.sharper()
        if not self._states:
            self._states = self._begin(small, sharper)
        self._until_done(small, sharper)
        found = {name: solver.eigenvector(state) for name, state in self._states.items()}
        self._states = {name: solver.start(vector, self._own_seed(name)) for name, vector in found.items()}
        self._on_subset, self._rounds = False, 0

    def _begin(self, operator: BlockOperator, solver: Solver) -> dict[str, State]:
        """Random starts, or gradients; a gradient of zero says nothing and is replaced."""
        vectors = {name: operator.random_vector(name, self._generator(name)) for name in operator.names}
        if getattr(solver, "start_from", "random") != "random":
            vectors |= {name: vector for name, vector in operator.gradients().items() if bool(vector.any())}
        return {name: solver.start(vector, self._own_seed(name)) for name, vector in vectors.items()}

    def _until_done(self, operator: BlockOperator, solver: Solver) -> None:
        while waiting := {name: state["vector"] for name, state in self._states.items() if not state["done"]}:
            before = dict(operator.seconds)
            for name, reading in self._read(operator, solver, waiting).items():
                if not bool(reading.isfinite().all()):
                    raise UserError(f"the curvature of block {name!r} is not finite: check the weights and the loss")
                self._states[name] = solver.update(self._states[name], reading)
                self._seconds[name] += operator.seconds[name] - before[name]
                if operator is self._operator:
                    self._listen(name, self._estimates(name), self._states[name]["done"])
            self._rounds += 1
            self._save()
            if operator is self._operator and from_first(self._settled(self._found())):
                break
        operator.release()

    def _read(self, operator: BlockOperator, solver: Solver, waiting: dict[str, Tensor]) -> dict[str, Tensor]:
        if solver.reads == "products":
            return operator.products(waiting)
        if solver.reads == "gradients":
            rows = operator.gradients()
        else:
            rows = operator.sketches(self._own_seed(f"sketch {self._rounds}"))
        return {name: rows[name] for name in waiting}

    def _found(self) -> dict[str, Estimates]:
        return {name: self._estimates(name) for name in self._states}

    def _estimates(self, name: str) -> Estimates:
        """What the solver knows, with its cost so far."""
        seconds, unit = self._seconds[name], self._operator.gradient_seconds
        gradients = seconds / unit if unit else None
        found = self._solver.estimates(self._states[name])
        return {
            quantity: replace(estimate, seconds=seconds, gradient_equivalents=gradients)
            for quantity, estimate in found.items()
        }

    def _save(self) -> None:
        if self._checkpoint is None or time.monotonic() - self._saved < self._save_every:
            return
        kept = {"rounds": self._rounds, "seconds": self._seconds, "on_subset": self._on_subset, "states": self._states}
        self._checkpoint.save(kept)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        """The stored state of the first process, on every process."""
        kept = from_first(self._checkpoint.load() if self._checkpoint else None)
        if kept is None:
            return
        self._rounds, self._seconds, self._on_subset = kept["rounds"], kept["seconds"], kept["on_subset"]
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
