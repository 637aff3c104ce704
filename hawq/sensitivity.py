"""The analysis: top Hessian eigenvalue and weight errors of every block."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from hawq.attention import with_open_attention
from hawq.blocks import block_layers, trace_blocks
from hawq.checks import check_range
from hawq.components import component
from hawq.curvature import (
    OPERATORS,
    Batch,
    BlockOperator,
    CurvatureCheckpoint,
    Lanczos,
    Loss,
    Solver,
    activation_traces,
    check_forms,
    check_loss,
    check_network,
    detached_layers,
    fixed,
    refuse_short_weights,
    solve_blocks,
)
from hawq.errors import UserError
from hawq.layers import refuse_computed_weights, weight_of
from hawq.progress import SILENT, Progress
from hawq.quantization import LSQ, Quantizer, activation_errors, refuse_quantized, weight_errors
from hawq.records import BIT_WIDTHS, Block, BlockSensitivity, Estimate, Prediction, ScoreTable, Sensitivity

_ACTIVATION_TOLERANCE, _ACTIVATION_DRAWS = 0.05, 100
_FEW = 2  # samples that the forms are checked on


@component("analysis/analysis", not_in_key=("batch_size", "landscape", "save_every_seconds"))
@dataclass(frozen=True)
class Analysis:
    """How much data the Hessian sees.

    Args:
        num_samples: training samples, drawn once by the run's seed, that the loss is averaged over.
        batch_size: samples in one pass; with all samples in one batch no forward is repeated.
        activations: whether curvature by, and errors of, the blocks' input activations are measured as well.
        detached_bits: bit-width of blocks that no gradient of the loss reaches (a backbone under no_grad, say); None
            refuses them.
        stop_when_settled: ends as soon as no curvature within its error can change a bit-width (bits=mixed).
        landscape: whether the loss is measured along the top eigenvector of the three blocks of largest curvature.
        save_every_seconds: how often a half-done analysis is stored, so that a killed run can resume.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int = 256
    batch_size: int = 256
    activations: bool = False
    detached_bits: int | None = None
    stop_when_settled: bool = False
    landscape: bool = False
    save_every_seconds: float = 20.0

    def __post_init__(self) -> None:
        check_range("num_samples", self.num_samples, least=1)
        check_range("batch_size", self.batch_size, least=1)
        check_range("detached_bits", self.detached_bits, least=BIT_WIDTHS[0], most=BIT_WIDTHS[-1], optional=True)
        check_range("save_every_seconds", self.save_every_seconds, least=0)


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


def analyze(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[Batch],
    loss: Loss = nn.functional.cross_entropy,
    *,
    solver: Solver | None = None,
    quantizer: Quantizer | None = None,
    activations: bool = False,
    detached_bits: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Sensitivity:
    """λ_i, and ‖Q_b(W_i) − W_i‖²₂ for b = 1 … 8, of every block (HAWQ, 1905.03696).

    Args:
        model: the float network; it stays as it is.
        blocks: from `find_blocks`.
        batches: fixed (inputs, targets) pairs, on the model's device; in a group of processes, those of this one.
        loss: mean loss over a batch of (outputs, targets).
        solver: Lanczos unless given.
        quantizer: LSQ unless given; decides Q_b.
        activations: also measures the curvature by, and the quantisation error of, each block's input activations.
        detached_bits: bit-width that blocks keep which no gradient of the loss reaches; None refuses them.
        seed: of the random start vectors.
        progress: told of every estimate.

    Raises:
        ValueError: no batches, or batches, a network or a loss whose Hessian would mean nothing.
    """
    given = fixed(batches)
    refuse_short_weights(model)
    _refuse_made_weights(model, blocks)
    if any(block.macs is None for block in blocks):
        blocks = trace_blocks(model, blocks, given[0][0][:1])
    curvature = measure_curvature(
        model,
        blocks,
        given,
        loss,
        solver or Lanczos(),
        seed,
        activations=activations,
        detached_bits=detached_bits,
        warn=warnings.warn,
        progress=progress,
    )
    return combine(model, blocks, curvature, quantizer or LSQ(), [inputs for inputs, _ in given])


@with_open_attention
def measure_curvature(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    solver: Solver,
    seed: int,
    checkpoint: CurvatureCheckpoint | None = None,
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
    _refuse_made_weights(model, blocks)
    refuse_short_weights(model)
    _check_forms(model, batches, loss, solver)
    for text in check_network(model, batches, loss, twice=solver.reads in ("products", "rows")):
        warn(text)
    limit = solver.memory_limit_gib
    kind = OPERATORS[solver.curvature]
    parameters = {block.name: block_weights(model, block) for block in blocks}
    detached = _detached(model, blocks, batches, loss, solver, detached_bits)
    operator = kind(model, parameters, batches, loss, None if limit is None else limit * 2**30)
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
    if activations:
        found = _with_activation_traces(found, operator, blocks, batches, seed)
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


def combine(
    model: nn.Module, blocks: Sequence[Block], curvature: Curvature, quantizer: Quantizer, inputs: Sequence[Tensor]
) -> Sensitivity:
    """The curvature of each block beside its weight errors, and its activations' where their curvature was measured.

    `inputs` are batches (N, ...) of the network's input.
    """
    found = curvature.estimates
    by_activations = any("activation_trace" in estimates for estimates in found.values())
    errors = activation_errors(model, blocks, inputs, quantizer) if by_activations else {}
    each = {block.name: _layer_errors(model, block, quantizer) for block in blocks}
    rows = tuple(
        BlockSensitivity(
            block=replace(block, fixed_bits=curvature.detached.get(block.name, block.fixed_bits)),
            eigenvalue=found[block.name].get("eigenvalue"),
            weight_errors=_summed(each[block.name]),
            trace=found[block.name].get("trace"),
            smallest=found[block.name].get("smallest"),
            proxy=found[block.name].get("proxy"),
            activation_trace=found[block.name].get("activation_trace"),
            activation_errors=errors.get(block.name),
        )
        for block in blocks
    )
    relative = {name: _relative(layers) for name, layers in each.items()}
    table = ScoreTable("relative_error", relative)
    return Sensitivity(rows, curvature.solver, curvature.num_samples, curvature.loss, scores=(table,))


def _layer_errors(model: nn.Module, block: Block, quantizer: Quantizer) -> list[tuple[dict[int, float], float]]:
    """Bits → ‖ΔW‖², and ‖W‖², of each distinct weight of a block."""
    return [
        (weight_errors([layer], quantizer), float(weight_of(layer).detach().double().square().sum()))
        for layer in block_layers(model, block)
    ]


def _summed(layers: Sequence[tuple[dict[int, float], float]]) -> dict[int, float]:
    """Bits → Σ ‖ΔW‖² over the layers."""
    return {bits: sum(errors[bits] for errors, _ in layers) for bits in BIT_WIDTHS}


def _relative(layers: Sequence[tuple[dict[int, float], float]]) -> dict[int, Prediction]:
    """Bits → Σ ‖ΔW‖²/‖W‖² over the layers; a layer of zeros has no error."""
    return {bits: Prediction(sum(errors[bits] / size for errors, size in layers if size)) for bits in BIT_WIDTHS}


def _refuse_made_weights(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Raises UserError for quantised or otherwise computed weights: their curvature would come out as zero."""
    refuse_quantized(model)
    refuse_computed_weights(model, [layer for block in blocks for layer in block.layers])


def block_weights(model: nn.Module, block: Block) -> list[Tensor]:
    """The distinct weight tensors W_i of a block, in the order of its layers."""
    return [weight_of(layer) for layer in block_layers(model, block)]
