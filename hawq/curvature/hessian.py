"""Exact Hessian-vector products of every block, matrix-free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hawq.curvature.double_backward import second_derivatives
from hawq.curvature.operator import BlockOperator
from hawq.distributed import all_gather


class BlockHessian(BlockOperator):
    """v ↦ H_ii v, H_ii = ∂²L/∂W_i² of the mean loss over all samples (1905.03696, §3.1).

    By Pearlmutter's identity H_ii v = ∂(g_iᵀv)/∂W_i, g_i the gradient of block i.
    """

    @property
    def trace_is_gauss_newtons(self) -> bool:
        """Whether ∂²z/∂w² = 0 for each single weight w, so that H_ii and G_ii have the same diagonal.

        True when, on the graph of one sample, no weight leads to its own slope ∂z/∂w.
        """
        return all(all_gather(not self.influence or self._leads_to_no_own_slope()))

    def _leads_to_no_own_slope(self) -> bool:
        weights = self.weights.all
        with self.analysis():
            with second_derivatives():
                outputs = self.model(self.samples.input(0))
            slopes = torch.autograd.grad(outputs.sum(), weights, create_graph=True, allow_unused=True)
            return all(
                torch.autograd.grad(slope.sum(), weight, retain_graph=True, allow_unused=True)[0] is None
                for slope, weight in zip(slopes, weights, strict=True)
                if slope is not None and slope.requires_grad
            )

    def _linearize(self, outputs: Tensor, targets: Tensor, weights: Sequence[Tensor]) -> dict[str, Sequence[Tensor]]:
        """g_i of every block for one batch, with the graph that a second backward needs."""
        loss = self.loss(outputs, targets)
        return self.weights.by_block(
            torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
        )

    def _product(self, shared: dict[str, Sequence[Tensor]], name: str, vector: Tensor) -> Tensor:
        pairs = zip(shared[name], self.weights.parts(name, vector), strict=True)
        curved = [(gradient, part) for gradient, part in pairs if gradient.requires_grad]
        if not curved:  # the gradient does not depend on any weight: H_ii = 0
            return torch.zeros_like(vector)
        rows = torch.autograd.grad(
            [gradient for gradient, _ in curved],
            self.weights.of(name),
            [part for _, part in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([row.reshape(-1) for row in rows])
