"""The loss along the top eigenvector of a block's curvature: what λ promises, and what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.checks import check_range
from hawq.curvature.krylov import krylov_start, krylov_step, ritz_pairs, ritz_vector
from hawq.curvature.operator import BlockOperator
from hawq.distributed import all_reduce

_PRODUCTS = 12
_NEAR = 1e-2  # of the eigenvalue: a residual with which the direction is good enough for a picture


@dataclass(frozen=True)
class Slice:
    """The mean loss of one block's weights W_i moved along a unit vector u, the top eigenvector of its curvature.

    Args:
        name: of the block.
        eigenvalue: uᵀHu.
        slope: gᵀu, so that g·u t + ½ uᵀHu t² is what curvature predicts.
        distances: the t of W_i + t u.
        losses: the mean loss there.
    """

    name: str
    eigenvalue: float
    slope: float
    distances: tuple[float, ...]
    losses: tuple[float, ...]


def landscape(operator: BlockOperator, reach: Mapping[str, float], seed: int = 0, points: int = 17) -> list[Slice]:
    """The loss on both sides of the weights of each block in `reach` (block → largest distance).

    The network ends as it was. In a group of processes every one has to make the same call.

    Args:
        operator: curvature of the blocks, whose samples the loss is averaged over.
        reach: block → the largest |t|.
        seed: of the random start of the search for u.
        points: distances, evenly spaced from −reach to reach.

    Raises:
        ValueError: fewer than 3 points, or a reach that is not above 0.
    """
    check_range("points", points, least=3, most=1001)
    for name, distance in reach.items():
        check_range(f"reach of {name}", distance, above=0)
    slopes = operator.gradients() if reach else {}
    tops = {name: _top(operator, name, slopes[name], seed) for name in reach}
    operator.release()  # a kept graph holds the weights as they were
    found = []
    for name, distance in reach.items():
        value, direction = tops[name]
        distances = torch.linspace(-distance, distance, points, dtype=torch.float64).tolist()
        losses = [_loss_at(operator, name, direction, t) for t in distances]
        found.append(Slice(name, value, float(slopes[name].dot(direction)), tuple(distances), tuple(losses)))
    return found


def _top(operator: BlockOperator, name: str, slope: Tensor, seed: int) -> tuple[float, Tensor]:
    """The largest eigenvalue with its Ritz vector (n_i,), from the gradient and a little chance."""
    noise = operator.random_vector(name, torch.Generator().manual_seed(seed))
    start = slope / slope.norm().clamp_min(torch.finfo(slope.dtype).tiny) + 0.1 * noise / noise.norm()
    state = krylov_start(start)
    while True:
        state = krylov_step(state, operator.products({name: state["vector"]})[name])
        pair = ritz_pairs(state)[-1]
        if pair.error <= _NEAR * abs(pair.value) or state["invariant"] or len(state["alpha"]) >= _PRODUCTS:
            return pair.value, ritz_vector(state, pair)


@torch.no_grad()
def _loss_at(operator: BlockOperator, name: str, direction: Tensor, distance: float) -> float:
    """The mean loss with the block's weights moved, all of them put back exactly."""
    weights = operator.weights.of(name)
    kept = [weight.detach().clone() for weight in weights]
    total = torch.zeros((), dtype=torch.float64, device=operator.device)
    try:
        for weight, part in zip(weights, operator.weights.parts(name, direction), strict=True):
            weight.add_(part, alpha=distance)
        with operator.analysis(), torch.no_grad():
            for (inputs, targets), share in operator.samples.weighted():
                total += share * float(operator.loss(operator.model(inputs), targets))
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
    all_reduce([total])
    return float(total)
