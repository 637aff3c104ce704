"""Exact Hessian-vector products of every block, matrix-free, on a fixed set of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hawq.curvature.operators import twice_differentiable
from hawq.errors import UserError
from hawq.modes import eval_mode

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


class BlockHessian:
    """v ↦ H_ii v for every block, H_ii = ∂²L/∂W_i² of the mean loss over all samples (1905.03696, §3.1).

    By Pearlmutter's identity H_ii v = ∂(g_iᵀv)/∂W_i. Batches are the outer loop and blocks the inner one: one forward
    and one first backward per batch serve every block, and each product runs only through the graph above its block.
    With a single batch that graph is kept, so a product costs no forward at all. The model is put in eval mode while
    it runs; its modes, gradients and buffers are left as they were.

    Args:
        model: any module; all its parameters must be on the device of the batches.
        parameters: block name → the weights W_i of that block.
        batches: fixed (inputs, targets) pairs; a ragged last batch is weighted by its samples.
        loss: mean loss over a batch of (outputs, targets).

    Raises:
        ValueError: no batches.
        UserError: a loss that is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Sequence[Tensor]],
        batches: Sequence[Batch],
        loss: Loss,
    ) -> None:
        if not batches:
            raise ValueError("the curvature needs at least one batch, none was given")
        self._model, self._loss, self._batches = model, loss, batches
        self._parameters = {name: list(weights) for name, weights in parameters.items()}
        self._num_samples = sum(len(inputs) for inputs, _ in batches)
        self._kept_graph: dict[str, tuple[Tensor, ...]] | None = None
        self.mean_loss = self._evaluate_loss()

    @property
    def num_samples(self) -> int:
        return self._num_samples

    def start_vector(self, name: str, generator: torch.Generator) -> Tensor:
        """A standard normal vector (n_i,) for block `name`, drawn on the CPU, so equal on every device."""
        first = self._parameters[name][0]
        size = sum(weight.numel() for weight in self._parameters[name])
        return torch.randn(size, generator=generator, dtype=first.dtype).to(first.device)

    def products(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H_ii v_i for each block named in `vectors`, each (n_i,) flat in the order of the block's weights."""
        totals = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        with _analysis_mode(self._model, self._weights()):
            for batch in self._batches:
                share = len(batch[0]) / self._num_samples
                gradients = self._gradients(batch)
                for name, vector in vectors.items():
                    totals[name] += share * self._product(gradients[name], self._parameters[name], vector)
        return totals

    def _weights(self) -> list[Tensor]:
        return [weight for block in self._parameters.values() for weight in block]

    def _gradients(self, batch: Batch) -> dict[str, tuple[Tensor, ...]]:
        """g_i of every block for one batch, with the graph that a second backward needs."""
        if self._kept_graph is not None:
            return self._kept_graph
        loss = self._loss(self._model(batch[0]), batch[1])
        flat = torch.autograd.grad(loss, self._weights(), create_graph=True, allow_unused=True, materialize_grads=True)
        gradients: dict[str, tuple[Tensor, ...]] = {}
        begin = 0
        for name, block in self._parameters.items():
            gradients[name] = flat[begin : begin + len(block)]
            begin += len(block)
        if len(self._batches) == 1:
            self._kept_graph = gradients
        return gradients

    @staticmethod
    def _product(gradients: Sequence[Tensor], weights: Sequence[Tensor], vector: Tensor) -> Tensor:
        parts = [part.view_as(weight) for part, weight in zip(_split(vector, weights), weights, strict=True)]
        curved = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
        if not curved:  # the gradient does not depend on any weight: H_ii = 0
            return torch.zeros_like(vector)
        rows = torch.autograd.grad(
            [g for g, _ in curved],
            weights,
            [part for _, part in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([row.reshape(-1) for row in rows])

    def _evaluate_loss(self) -> float:
        total = 0.0
        with _analysis_mode(self._model, []), torch.no_grad():
            for inputs, targets in self._batches:
                total += float(self._loss(self._model(inputs), targets)) * len(inputs) / self._num_samples
        if not math.isfinite(total):
            raise UserError(
                f"the mean loss of the analysed samples is {total}: a Hessian needs a finite one, check the weights"
            )
        return total


def _split(vector: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return vector.split([weight.numel() for weight in weights])


@contextmanager
def _analysis_mode(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Eval mode, gradients only for `weights`, full float32 products; everything is put back at the end."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        autocast = torch.autocast(next(model.parameters()).device.type, enabled=False)
        with eval_mode(model), twice_differentiable(), autocast, torch.enable_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)
