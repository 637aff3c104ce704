"""Two sets of samples whose matrices add up to that of all: the few that curve the loss, and the others."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator
from hawq.curvature.survey import Survey
from hawq.distributed import all_gather

_LEFT = 0.0005  # of the curvature and of the slope of the loss by the outputs, to the samples outside the subset
_MOST = 0.5  # of the samples in the subset: with more, two products of the others do not pay for themselves


@dataclass(frozen=True)
class Split:
    """C_ii = s A_ii + (1 − s) D_ii, A_ii of the subset, which holds a share s of the samples, D_ii of the rest."""

    subset: BlockOperator
    rest: BlockOperator
    share: float


def split(operator: BlockOperator) -> Split | None:
    """The few samples that hold nearly all curvature, and the rest; None where they are too many.

    Both parts of the Hessian count, JᵀSJ by the curvature S of the loss by the outputs and the network's own curvature
    by the slope of the loss. None too where a sample's output or loss depends on who else is in its batch: the matrices
    would then not add up.
    """
    if not operator.sees_samples_alone:
        return None
    influence, slope = operator.influence, [math.sqrt(value) for value in operator.seen.residual]
    totals = [sum(map(sum, all_gather(values))) or 1.0 for values in (influence, slope)]
    weights = [a / totals[0] + b / totals[1] for a, b in zip(influence, slope, strict=True)]
    chosen = operator.samples.heaviest(weights, left=_LEFT)
    count = sum(all_gather(len(chosen)))
    if not 0 < count <= _MOST * operator.num_samples:
        return None
    others = sorted(set(range(operator.samples.local_count)) - set(chosen))
    parts = [operator.of_samples(own, _seen_of(operator, own)) for own in (sorted(chosen), others)]
    if not all(all_gather(_adds_up(operator, chosen, parts))):
        return None
    return Split(parts[0], parts[1], count / operator.num_samples)


def _seen_of(operator: BlockOperator, chosen: Collection[int]) -> Survey:
    """What the survey of all samples has seen of some; their mean loss is left open."""
    seen = operator.seen
    rows = sorted(chosen)
    return Survey(
        math.nan,
        [seen.influence[i] for i in rows],
        [seen.residual[i] for i in rows],
        None if seen.outputs is None else seen.outputs[rows],
    )


def _adds_up(operator: BlockOperator, chosen: Collection[int], parts: list[BlockOperator]) -> bool:
    """Whether the loss of each sample has the same slope in its part as among all."""
    if operator.outputs is None:
        return True
    expected = _slopes(operator)
    others = [i for i in range(len(expected)) if i not in set(chosen)]
    return all(
        torch.allclose(_slopes(part), expected[own], rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
        for part, own in zip(parts, (sorted(chosen), others), strict=True)
        if own
    )


def _slopes(operator: BlockOperator) -> Tensor:
    """∂ℓ_n/∂z_n (n, C) of this process's samples, ℓ_n = N_b · the mean loss of its batch, in their order."""
    assert operator.outputs is not None
    rows, first = [], 0
    for (inputs, targets), _ in operator.samples.weighted():
        leaf = operator.outputs[first : first + len(inputs)].detach().requires_grad_()
        (slope,) = torch.autograd.grad(len(inputs) * operator.loss(leaf, targets), leaf, materialize_grads=True)
        rows.append(slope)
        first += len(inputs)
    return torch.cat(rows)
