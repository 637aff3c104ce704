"""Matrices whose spectra are known, and a stored state read back."""

import io

import numpy as np
import torch

from hawq.curvature import Solver
from hawq.records import Estimate

SPECTRA = {
    "clear gap": [9.0, 4.0, 1.0, -2.0],
    "degenerate top pair": [3.0, 3.0, 1.0, 0.5],
    "all equal": [2.0, 2.0, 2.0],
    "all negative": [-1.0, -2.0, -5.0],
    "dominant negative": [3.0, 1.0, -5.0],
    "zero": [0.0, 0.0, 0.0],
    "1x1": [2.5],
    "1x1 negative": [-2.5],
}


def matrix(spectrum, seed=0):
    """A symmetric float64 matrix (n, n) with these eigenvalues, and a start vector (n,)."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))
    return torch.from_numpy(basis @ np.diag(spectrum) @ basis.T), torch.from_numpy(rng.standard_normal(len(spectrum)))


def reload(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def solve_with_reloads(solver: Solver, dense: torch.Tensor, start: torch.Tensor) -> dict[str, Estimate]:
    """As `hawq.curvature.solve`, with the state stored and read back before every product."""
    state = solver.start(start)
    while not state["done"]:
        state = reload(state)
        state = solver.update(state, dense @ state["vector"])
    return solver.estimates(state)


def solve_split(solver, subset, rest, share, start, seed=0, rows=None):
    """As a run on samples of which a `share` is a subset: dense matrices A and D of H = s A + (1 − s) D.

    `rows` U (m, n) are known, with UᵀU somewhere near A.
    """
    first = solver.for_subset()
    state = first.start(start, seed, rows)
    while not state["done"]:
        state = first.update(state, subset @ state["vector"])
    carried = solver.carried(state, share)
    state = solver.start(solver.eigenvector(state), seed) if carried is None else carried
    parts = {"subset": subset, "rest": rest, "all": share * subset + (1 - share) * rest}
    while not state["done"]:
        state = solver.update(state, parts[state["part"]] @ state["vector"])
    return solver.estimates(state)
