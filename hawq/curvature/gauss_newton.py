"""Gauss-Newton products of every block: the Hessian without the curvature of the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator


@dataclass(frozen=True)
class _Linearized:
    """One batch: outputs z, ∂L/∂z at a leaf copy of z, and J_iᵀu with its graph for a dummy u."""

    outputs: Tensor
    leaf: Tensor
    gradient: Tensor
    dummy: Tensor
    vjp: dict[str, Sequence[Tensor]]


class BlockGaussNewton(BlockOperator):
    """v ↦ G_ii v, G_ii = mean over samples of J_iᵀ S J_i, J_i = ∂z/∂W_i, S = ∂²L/∂z² (Schraudolph, 2002).

    Positive semidefinite for a convex loss. J_i v is the derivative by u of J_iᵀu, which is linear in u (Townsend,
    2017). For a single layer under a network that is linear between its kinks (ReLU, frozen batch norm), G_ii = H_ii.
    """

    @property
    def trace_is_gauss_newtons(self) -> bool:
        """Always: this is the Gauss-Newton matrix."""
        return True

    def _linearize(self, outputs: Tensor, targets: Tensor, weights: Sequence[Tensor]) -> _Linearized:
        leaf = outputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(leaf, targets), leaf, create_graph=True, materialize_grads=True)
        dummy = torch.zeros_like(outputs, requires_grad=True)
        flat = torch.autograd.grad(
            outputs, weights, dummy, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return _Linearized(outputs, leaf, gradient, dummy, self.weights.by_block(flat))

    def _product(self, shared: _Linearized, name: str, vector: Tensor) -> Tensor:
        pairs = zip(shared.vjp[name], self.weights.parts(name, vector), strict=True)
        reached = [(vjp, part) for vjp, part in pairs if vjp.requires_grad]
        if not reached or not shared.gradient.requires_grad:  # outputs do not depend on it, or the loss is linear
            return torch.zeros_like(vector)
        (pushed,) = torch.autograd.grad(  # J_i v, in the shape of z; 0 where no gradient reaches the block
            [vjp for vjp, _ in reached],
            shared.dummy,
            [part for _, part in reached],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        (curved,) = torch.autograd.grad(  # S J_i v
            shared.gradient, shared.leaf, pushed, retain_graph=True, materialize_grads=True
        )
        rows = torch.autograd.grad(
            shared.outputs,
            self.weights.of(name),
            curved,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([row.reshape(-1) for row in rows])
