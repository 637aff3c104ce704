"""Curvature by the activations that enter each block, for mixed-precision activations (HAWQ-V2, 1911.03852, §3.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hawq.curvature.double_backward import second_derivatives
from hawq.curvature.operator import BlockOperator
from hawq.curvature.solver import STANDARD, mean_and_error
from hawq.distributed import all_reduce
from hawq.layers import Arguments, map_inputs
from hawq.records import Estimate

_FEWEST = 8  # draws below which a standard error says little
Shifts = dict[str, list[Tensor]]


def activation_traces(
    operator: BlockOperator, layers: Mapping[str, Sequence[str]], tolerance: float, max_draws: int, seed: int
) -> dict[str, Estimate]:
    """Mean over samples of Tr(∂²ℓ/∂a²), a the inputs of each block's layers, ℓ the loss of one sample.

    The Hessian by the activations of a batch is block diagonal by sample, so one product with random signs z draws
    all samples at once: zᵀHz = mean over n of z_nᵀ H_n z_n (1911.03852, §3.5). A shift of zero is added to each
    layer's input, and the loss is differentiated twice by it.

    Args:
        operator: whose model, batches and loss are taken.
        layers: block → qualified names of the layers whose inputs count.
        tolerance: stops once every standard error over draws is below tolerance · |trace|.
        max_draws: most products per block.
        seed: of the signs.

    Returns:
        Block → trace, with its standard error over draws.
    """
    draws: dict[str, list[float]] = {name: [] for name in layers}
    while len(next(iter(draws.values()))) < max_draws:
        drawn = _draw(operator, layers, seed + len(next(iter(draws.values()))))
        for name, value in drawn.items():
            draws[name].append(value)
        found = {name: _estimate(values, tolerance) for name, values in draws.items()}
        if all(estimate.converged for estimate in found.values()):
            break
    return found


def _estimate(draws: Sequence[float], tolerance: float) -> Estimate:
    mean, error = mean_and_error(draws)
    near = len(draws) >= _FEWEST and error <= tolerance * abs(mean)
    return Estimate(mean, error, len(draws), near, confidence=STANDARD)


def _draw(operator: BlockOperator, layers: Mapping[str, Sequence[str]], seed: int) -> dict[str, float]:
    """One draw of zᵀHz of every block, over all samples of all processes."""
    return operator.until_it_fits(lambda: _quadratics(operator, layers, seed))


def _quadratics(operator: BlockOperator, layers: Mapping[str, Sequence[str]], seed: int) -> dict[str, float]:
    totals = {name: torch.zeros((), dtype=torch.float64, device=operator.device) for name in layers}
    generator = torch.Generator().manual_seed(seed)
    wanted = {layer for members in layers.values() for layer in members}
    for batch, share in operator.samples.weighted():
        with operator.analysis(), shifted_inputs(operator.model, wanted) as shifts:
            with second_derivatives():
                outputs = operator.model(batch[0])
            loss = operator.loss(outputs, batch[1])
            known = [shift for made in shifts.values() for shift in made]
            flat = torch.autograd.grad(loss, known, create_graph=True, allow_unused=True, materialize_grads=True)
            gradients = dict(zip(map(id, known), flat, strict=True))
            for name, members in layers.items():
                own = [shift for layer in members for shift in shifts.get(layer, [])]
                totals[name] += share * _quadratic(own, [gradients[id(s)] for s in own], generator)
    all_reduce(list(totals.values()))
    return {name: float(total) for name, total in totals.items()}


def _quadratic(shifts: Sequence[Tensor], gradients: Sequence[Tensor], generator: torch.Generator) -> float:
    """Σ zᵀ(∂g/∂e)z over the shifts e of one block, each with signs z of its own: the trace of each layer's own part."""
    total = 0.0
    for shift, gradient in zip(shifts, gradients, strict=True):
        signs = (torch.randint(2, shift.shape, generator=generator) * 2 - 1).to(shift)
        if gradient.requires_grad:
            (row,) = torch.autograd.grad(gradient, shift, signs, retain_graph=True, materialize_grads=True)
            total += float((row * signs).sum())
    return total


@contextmanager
def shifted_inputs(model: nn.Module, names: set[str]) -> Iterator[Shifts]:
    """While active, each forward adds a zero that can be differentiated to the input of each named layer."""
    shifts: Shifts = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(_shifter(shifts.setdefault(name, [])), with_kwargs=True)
        for name in names
    ]
    try:
        yield shifts
    finally:
        for handle in handles:
            handle.remove()


def _shifter(made: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Arguments]:
    def add(x: Tensor) -> Tensor:
        made.append(torch.zeros_like(x, requires_grad=True))
        return x + made[-1]

    def shift(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return map_inputs(layer, args, kwargs, add)

    return shift
