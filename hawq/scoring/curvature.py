"""The curvature of every block: checks of network and loss, then one solver per block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from hawq.attention import with_open_attention
from hawq.blocks import trace_blocks
from hawq.curvature import (
    Batch,
    BlockOperator,
    Loss,
    NoCurvature,
    Solver,
    activation_traces,
    check_forms,
    check_loss,
    check_network,
    detached_layers,
    refuse_short_weights,
    solve_blocks,
)
from hawq.curvature.samples import Samples
from hawq.distributed import all_reduce
from hawq.errors import UserError
from hawq.layers import refuse_computed_weights, weight_of
from hawq.modes import analysis_mode
from hawq.progress import SILENT, Progress
from hawq.quantization import refuse_quantized
from hawq.records import Block, Estimate
from hawq.resuming import Checkpoint
from hawq.scoring.work import block_operator

_ACTIVATION_TOLERANCE, _ACTIVATION_DRAWS = 0.05, 100
_FEW = 2  # samples that the forms are checked on


@dataclass(frozen=True)
class Curvature:
    """What a solver found of every block, and the mean loss: the expensive half of a sensitivity.

    `estimates` maps block → quantity ("eigenvalue", "smallest", "trace", "proxy", "activation_trace") → estimate;
    `detached` blocks that no gradient reaches → the bit-width that they keep.
    """

    estimates: dict[str, dict[str, Estimate]]
    solver: str
    num_samples: int
    loss: float
    detached: dict[str, int] = field(default_factory=dict)


@with_open_attention
def measure_curvature(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    solver: Solver,
    seed: int,
    checkpoint: Checkpoint | None = None,
    save_every_seconds: float = 20.0,
    on_estimate: Callable[[str, Estimate], None] = lambda name, estimate: None,
    *,
    activations: bool = False,
    detached_bits: int | None = None,
    warn: Callable[[str], object] = lambda text: None,
    settled: Callable[[Curvature], bool] = lambda curvature: False,
    progress: Progress = SILENT,
) -> Curvature:
    """Checks network and loss, then runs one solver per block, all in step.

    Args:
        model, blocks, batches, loss, solver, seed, activations, detached_bits, progress: see `analyze`.
        checkpoint: where a half-done analysis is stored every `save_every_seconds`.
        on_estimate: called with each block's name and main result as soon as it is final.
        warn: called with each sentence about what makes the results less sure.
        settled: asked after every round; True ends the measurement of the weights' curvature.

    Raises:
        ValueError: as `BlockOperator`, `check_network` and `solve_blocks` do.
    """
    refuse_made_weights(model, blocks)
    refuse_short_weights(model)
    _check_forms(model, batches, loss, solver)
    if isinstance(solver, NoCurvature):
        return Curvature({block.name: {} for block in blocks}, solver.name, *mean_loss(model, batches, loss))
    for text in check_network(model, batches, loss, twice=solver.reads in ("products", "rows")):
        warn(text)
    detached = _detached(model, blocks, batches, loss, solver, detached_bits)
    operator = block_operator(solver.curvature, model, blocks, batches, loss, solver.memory_limit_gib)
    doubts = check_loss(operator)
    for text in doubts:
        warn(text)
    with progress.blocks(operator.names, solver.tolerance) as task:

        def listen(name: str, estimates: dict[str, Estimate], done: bool) -> None:
            main = next(iter(estimates.values()))
            task.show(name, main, done)
            if done:
                on_estimate(name, main)

        def enough(found: dict[str, dict[str, Estimate]]) -> bool:
            return settled(Curvature(found, solver.name, operator.num_samples, operator.mean_loss, detached))

        found = solve_blocks(operator, solver, seed, checkpoint, save_every_seconds, listen, enough)
    if not doubts and (text := _flat(found, detached)):
        warn(text)
    found = _with_activation_traces(found, operator, blocks, batches, seed) if activations else found
    return Curvature(found, solver.name, operator.num_samples, operator.mean_loss, detached)


def _with_activation_traces(
    found: Mapping[str, dict[str, Estimate]],
    operator: BlockOperator,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """The estimates of each block, and the trace of the Hessian by its input activations."""
    if any(block.macs is None for block in blocks):
        blocks = trace_blocks(operator.model, blocks, batches[0][0][:1])
    layers = {b.name: [layer for layer in b.layers if layer not in b.image_layers] for b in blocks}
    traces = activation_traces(operator, layers, _ACTIVATION_TOLERANCE, _ACTIVATION_DRAWS, seed)
    return {name: {**found[name], "activation_trace": trace} for name, trace in traces.items()}


def _check_forms(model: nn.Module, batches: Sequence[Batch], loss: Loss, solver: Solver) -> None:
    """Raises UserError, before any work, for outputs or a loss of a form that the solver cannot work with."""
    if batches and solver.reads != "nothing":
        one_tensor = solver.reads in ("rows", "sketches") or solver.curvature == "ggn"
        check_forms(model, batches[0][0][:_FEW], batches[0][1][:_FEW], loss, one_tensor=one_tensor)


def _detached(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    solver: Solver,
    bits: int | None,
) -> dict[str, int]:
    """Blocks with a layer that no gradient reaches → the bit-width that they keep. Raises UserError where none is
    given.
    """
    if not batches or solver.reads == "nothing":
        return {}
    modules = dict(model.named_modules())
    weights = {layer: weight_of(modules[layer]) for block in blocks for layer in block.layers}
    names = detached_layers(model, weights, batches[0][0][:_FEW], batches[0][1][:_FEW], loss)
    if names and bits is None:
        raise UserError(
            f"no gradient of the loss reaches {', '.join(names)} (no_grad, detach, round or argmax on the way), so "
            "curvature says nothing of them: let gradients through, or give the width that they keep, say "
            "analysis.detached_bits=8"
        )
    found = [block.name for block in blocks if set(block.layers) & set(names)]
    return dict.fromkeys(found, bits) if bits is not None else {}


def _flat(found: Mapping[str, Mapping[str, Estimate]], detached: Collection[str]) -> str:
    """A sentence about blocks whose curvature is exactly zero; empty where there are none."""
    main = {name: next(iter(estimates.values())) for name, estimates in found.items() if name not in detached}
    names = [name for name, estimate in main.items() if estimate.value == 0.0]
    if not names:
        return ""
    which = "no block has" if len(names) == len(main) else f"{', '.join(names)} have no"
    any_ = "any curvature" if len(names) == len(main) else "curvature"
    return (
        f"{which} {any_} at the analysed samples (a layer behind that starts at zero, or units that are all off?): "
        "their widths follow the plain error alone"
    )


def mean_loss(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> tuple[int, float]:
    """Samples of all processes, and the mean loss over them. Raises ValueError without samples."""
    samples = Samples(batches)
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    with analysis_mode(model, []), torch.no_grad():
        for (inputs, targets), share in samples.weighted():
            total += share * float(loss(model(inputs), targets))
    all_reduce([total])
    return samples.count, float(total)


def refuse_made_weights(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Raises UserError for quantised or otherwise computed weights: their curvature would come out as zero."""
    refuse_quantized(model)
    refuse_computed_weights(model, [layer for block in blocks for layer in block.layers])
