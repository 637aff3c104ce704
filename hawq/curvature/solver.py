"""The contract of an eigen solver: it asks for products H·v one vector at a time, and never sees a network.

A solver is a pair of pure functions, `start` and `update`, over an explicit state. So the caller decides how products
are made (many blocks share one pass over the data), and a state can be stored and taken up again at any product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from hawq.records import Estimate

State = dict[str, Any]
"""Plain dictionary of tensors and numbers, so that it can be stored.

Each solver keeps `vector` (the next v to multiply), `done`, and whatever it needs beside them.
"""


class Solver(Protocol):
    """Finds the largest algebraic eigenvalue of a symmetric matrix from products alone."""

    @property
    def name(self) -> str: ...

    def start(self, vector: Tensor) -> State:
        """State before the first product; `vector` (n,) is the random or informed start."""
        ...

    def update(self, state: State, product: Tensor) -> State:
        """State after receiving `product` = H · state["vector"], both (n,)."""
        ...

    def estimate(self, state: State) -> Estimate:
        """The eigenvalue as known so far, with its residual bound."""
        ...


def solve(solver: Solver, multiply: Callable[[Tensor], Tensor], start: Tensor) -> Estimate:
    """Runs one solver to its end on one operator: `multiply` maps v (n,) to H·v (n,)."""
    state = solver.start(start)
    while not state["done"]:
        state = solver.update(state, multiply(state["vector"]))
    return solver.estimate(state)
