"""One solver per block, all in step: every pass over the data serves all blocks that are not done yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hawq.curvature.openings import Seeds, States, opening
from hawq.curvature.operator import BlockOperator
from hawq.curvature.solver import Solver
from hawq.distributed import broadcast
from hawq.errors import UserError
from hawq.modes import full_precision
from hawq.records import Estimate
from hawq.resuming import Checkpoint

Estimates = dict[str, Estimate]
Listener = Callable[[str, Estimates, bool], None]


def solve_blocks(
    operator: BlockOperator,
    solver: Solver,
    seed: int,
    checkpoint: Checkpoint | None = None,
    save_every_seconds: float = 20.0,
    listen: Listener = lambda name, estimates, done: None,
    settled: Callable[[dict[str, Estimates]], bool] = lambda found: False,
) -> dict[str, Estimates]:
    """What the solver finds of every block: name → quantity → estimate.

    With `start_from: subset` each solver first runs on the most influential samples, where a product costs an eighth,
    and starts on all of them at the eigenvector found there; the estimate and its error come from all samples alone.
    A solver that reads rows leaves the blocks that they do not settle to one that reads products.

    Args:
        operator: the matrices of all blocks.
        solver: run once per block.
        seed: of random vectors; that of a block depends on its name, not on the order of blocks.
        checkpoint: where the newest state is stored every `save_every_seconds`, and from where a killed run resumes.
        save_every_seconds: least time between two stored states.
        listen: called with (block, estimates, done) after every reading of all samples.
        settled: asked after every round on all samples, once all errors are bounds; True ends all blocks as they are.

    Raises:
        UserError: a reading that is not finite.
    """
    with full_precision(operator.device):
        return _March(operator, solver, seed, checkpoint, save_every_seconds, listen, settled).walk()


class _March:
    """The states of all solvers on their way through the phases, and what goes with them into a checkpoint."""

    def __init__(
        self,
        operator: BlockOperator,
        solver: Solver,
        seed: int,
        checkpoint: Checkpoint | None,
        save_every_seconds: float,
        listen: Listener,
        settled: Callable[[dict[str, Estimates]], bool],
    ) -> None:
        self._operator, self._listen, self._settled = operator, listen, settled
        self._checkpoint, self._save_every, self._saved = checkpoint, save_every_seconds, time.monotonic()
        self._phase = opening(operator, solver, Seeds(seed))
        self._states: States = {}
        self._rounds = 0
        self._seconds = dict.fromkeys(operator.names, 0.0)

    def walk(self) -> dict[str, Estimates]:
        """All phases, from the stored state where there is one."""
        self._resume()
        if not self._states:
            self._states = self._phase.begin()
        while not self._until_done():
            following = self._phase.then(self._phase.unsettled(self._states))
            if following is None:
                break
            self._states = self._phase.hand_on(self._states, following)
            self._phase, self._rounds = following, 0
        return self._found()

    def _until_done(self) -> bool:
        """Reads until all solvers have what they want; True when `settled` ended it before."""
        phase = self._phase
        while waiting := {name: state for name, state in self._states.items() if not state["done"]}:
            before = phase.seconds()
            for name, reading in phase.read(waiting, self._rounds).items():
                if not bool(reading.isfinite().all()):
                    raise UserError(f"the curvature of block {name!r} is not finite: check the weights and the loss")
                self._states[name] = phase.solvers[name].update(self._states[name], reading)
                self._seconds[name] += phase.seconds()[name] - before[name]
                if phase.speaks:
                    self._listen(name, self._estimates(name), phase.is_last_of(self._states[name]))
            self._rounds += 1
            self._save()
            if phase.speaks and broadcast(self._is_settled()):
                phase.release()
                return True
        phase.release()
        return False

    def _is_settled(self) -> bool:
        """Whether the errors are bounds by now and, with them, small enough for whoever asked."""
        found = self._found()
        bounded = all(
            estimate.confidence is not None and math.isfinite(estimate.error)
            for estimates in found.values()
            for estimate in list(estimates.values())[:1]
        )
        return bounded and self._settled(found)

    def _found(self) -> dict[str, Estimates]:
        return {name: self._estimates(name) for name in self._states}

    def _estimates(self, name: str) -> Estimates:
        """What the solver knows, with its cost so far."""
        seconds, unit = self._seconds[name], self._phase.gradient_seconds or self._operator.cost.gradient_seconds
        gradients = seconds / unit if unit else None
        found = self._phase.solvers[name].estimates(self._states[name])
        return {
            quantity: replace(estimate, seconds=seconds, gradient_equivalents=gradients)
            for quantity, estimate in found.items()
        }

    def _save(self) -> None:
        if self._checkpoint is None or time.monotonic() - self._saved < self._save_every:
            return
        kept = {"rounds": self._rounds, "seconds": self._seconds, "opening": self._phase.name, "states": self._states}
        self._checkpoint.save(kept | {"by_products": self._phase.by_products})
        self._saved = time.monotonic()

    def _resume(self) -> None:
        """The stored state of the first process, on every process."""
        kept = broadcast(self._checkpoint.load() if self._checkpoint else None)
        if kept is None:
            return
        self._rounds, self._seconds = kept["rounds"], kept["seconds"]
        if kept["opening"] != self._phase.name:
            self._phase = self._phase.then(kept["by_products"]) or self._phase
        self._states = {name: _moved(state, self._operator.device) for name, state in kept["states"].items()}


def _moved(value: Any, device: torch.device) -> Any:
    """The same state with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return [_moved(item, device) for item in value] if isinstance(value, list) else value
