"""How much the loss curves with each output of a unit: the diagonal of its Gauss-Newton (Fisher) matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.modes import analysis_mode
from hawq.progress import SILENT, Progress
from hawq.reconstruction.units import Unit
from hawq.structures import main_output, scores_classes

_BATCH = 8  # images whose whole graph is kept at a time


def output_curvature(
    model: nn.Module,
    units: Sequence[Unit],
    images: Sequence[Tensor],
    draws: int,
    seed: int,
    *,
    classes: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """Unit → mean over images of the diagonal of ∂²ℓ/∂z² ≈ Jᵀ S J for its outputs z, (rows, ...), mean 1.

    ℓ is the KL from the float network's own outputs, so no labels are needed; S = diag(p) − ppᵀ is its curvature by the
    logits, which is also the Fisher matrix (BRECQ, 2102.05426, eq. 9 and 10). Each draw v = √p ∘ ε − p⟨√p, ε⟩ with
    random signs ε has E[vvᵀ] = S, so that one backward pass gives an unbiased sample, (Jᵀv)², for all units at once.

    Args:
        model: the float network; left unchanged.
        units: of it; one whose output does not reach the network's is left out of the result.
        images: batches of inputs (N, ...).
        draws: per image.
        seed: of the signs.
        classes: whether axis 1 of the outputs has scores of classes. Otherwise ℓ is ½‖·‖², and S the identity.
        progress: advanced by every image.
    """
    totals: dict[str, Tensor] = {}
    generator = torch.Generator(device=images[0].device).manual_seed(seed)
    size = 0

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            def add(gradient: Tensor) -> None:
                squares = gradient.detach().reshape(size, -1, *gradient.shape[1:]).square().sum(0)
                totals[name] = totals[name] + squares if name in totals else squares

            main_output(output).register_hook(add)

        return hook

    hooks = [model.get_submodule(unit.name).register_forward_hook(watch(unit.name)) for unit in units]
    try:
        with (
            analysis_mode(model, []),
            opened_attention(model),
            progress.task("curvature of outputs", sum(map(len, images))) as task,
        ):
            for batch in (part for whole in images for part in whole.split(_BATCH)):
                size = len(batch)
                x = batch.clone().requires_grad_()
                outputs = main_output(model(x))
                for draw in range(draws):
                    vector = _draw(outputs.detach(), generator, classes)
                    torch.autograd.grad(outputs, x, vector, retain_graph=draw + 1 < draws)
                task.advance(size)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / total.mean() for name, total in totals.items() if float(total.mean()) > 0}


def _draw(outputs: Tensor, generator: torch.Generator, classes: bool) -> Tensor:
    """v with E[vvᵀ] = diag(p) − ppᵀ along axis 1, p = softmax(outputs); or random signs."""
    signs = torch.randint(2, outputs.shape, generator=generator, device=outputs.device).to(outputs.dtype) * 2 - 1
    if not scores_classes(outputs, classes):
        return signs
    p = outputs.softmax(1)
    scaled = p.sqrt() * signs
    return scaled - p * scaled.sum(1, keepdim=True)
