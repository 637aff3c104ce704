"""The analysis: curvature, weight errors and measured scores of every block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from hawq.blocks import block_layers, trace_blocks
from hawq.curvature import Batch, DistillationLoss, Lanczos, Loss, Solver, fixed, refuse_short_weights
from hawq.errors import UserError
from hawq.layers import weight_of
from hawq.progress import SILENT, Progress
from hawq.quantization import LSQ, Quantizer, activation_errors, input_batches, weight_errors
from hawq.records import BIT_WIDTHS, Block, BlockSensitivity, Prediction, ScoreTable, Sensitivity
from hawq.records.scores import check_scores
from hawq.scoring import Analysis, Conditions, JointTraining, measure_score
from hawq.scoring.curvature import Curvature, measure_curvature, refuse_made_weights
from hawq.scoring.work import block_weights

__all__ = ["Analysis", "Curvature", "analyze", "block_weights", "combine", "labelled", "measure_curvature"]


def analyze(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[Any],
    loss: Loss | str = nn.functional.cross_entropy,
    *,
    solver: Solver | None = None,
    quantizer: Quantizer | None = None,
    activations: bool = False,
    scores: Sequence[str] = (),
    images: Iterable[Any] | Tensor | None = None,
    calibration: Iterable[Any] | Tensor | None = None,
    kl_temperature: float = 2.0,
    training: JointTraining | None = None,
    detached_bits: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Sensitivity:
    """λ_i, and ‖Q_b(W_i) − W_i‖²₂ for b = 1 … 8, of every block (HAWQ, 1905.03696), with the scores asked for.

    Args:
        model: the float network; it stays as it is.
        blocks: from `find_blocks`.
        batches: fixed (inputs, targets) pairs, on the model's device; in a group of processes, those of this one.
            Inputs alone for the distillation loss.
        loss: mean loss over a batch of (outputs, targets); "distillation" (or a `DistillationLoss`) is that to the
            float network's own outputs.
        solver: Lanczos unless given; `NoCurvature()` measures none.
        quantizer: LSQ unless given; decides Q_b.
        activations: also measures the curvature by, and the quantisation error of, each block's input activations.
        scores: further ones to measure: "kl", "quadratic", "output_shift", "learned_steps".
        images: inputs that kl is measured on, without labels; those of `batches` unless given.
        calibration: inputs that batch norm's statistics and ranges of activations are taken from for these scores;
            those of `batches` unless given. The same for every process.
        kl_temperature: T of kl.
        training: of learned_steps, whose images are shuffled by `seed` unless it is given.
        detached_bits: see `Analysis`.
        seed: of the random start vectors.
        progress: told of every estimate.

    Raises ValueError: no batches, or batches, a network or a loss whose Hessian would mean nothing.
    """
    check_scores("scores", scores)
    refuse_short_weights(model)
    refuse_made_weights(model, blocks)
    loss = _loss_named(loss)
    given = labelled(model, _with_targets(batches) if isinstance(loss, DistillationLoss) else batches, loss)
    if any(block.macs is None for block in blocks):
        blocks = trace_blocks(model, blocks, given[0][0][:1])
    solver, quantizer, inputs = solver or Lanczos(), quantizer or LSQ(), [inputs for inputs, _ in given]
    find = partial(measure_curvature, activations=activations, detached_bits=detached_bits, progress=progress)
    curvature = find(model, blocks, given, loss, solver, seed, warn=warnings.warn)
    found = combine(model, blocks, curvature, quantizer, inputs, progress)
    conditions = Conditions(memory_limit_gib=solver.memory_limit_gib, progress=progress)
    kept: dict[str, Any] = {"curvature": solver.curvature, "activations": activations, "kl_temperature": kl_temperature}
    kept |= {"training": training or JointTraining(seed=seed), "conditions": conditions}
    needed = (model, blocks, given, loss, _own(images, inputs), _own(calibration, inputs), quantizer)
    return found.with_scores([measure_score(name, *needed, **kept) for name in scores])


def _own(given: Iterable[Any] | Tensor | None, otherwise: list[Tensor]) -> list[Tensor]:
    """The inputs (N, ...) of what was given, else those of the analysis."""
    return otherwise if given is None else input_batches(given, otherwise[0].device)


def _loss_named(loss: Loss | str) -> Loss:
    """The loss itself. Raises UserError for an unknown name."""
    if not isinstance(loss, str):
        return loss
    if loss not in ("cross_entropy", "distillation"):
        raise UserError(f"loss={loss!r} is unknown: give cross_entropy, distillation, or a function")
    return DistillationLoss() if loss == "distillation" else nn.functional.cross_entropy


def labelled(model: nn.Module, batches: Iterable[Any], loss: Loss) -> list[Batch]:
    """The batches as pairs, with the float network's outputs as targets where the loss is that of distillation.

    Raises UserError as `fixed` does.
    """
    given = fixed(batches)
    return loss.batches(model, [inputs for inputs, _ in given]) if isinstance(loss, DistillationLoss) else given


def _with_targets(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches; inputs that come alone have a target that nobody looks at."""
    if isinstance(batches, Tensor):
        batches = [batches]
    return map(_pair, batches) if isinstance(batches, Iterator) else _Pairs(batches)


class _Pairs:
    """Batches as pairs, as often as they are read."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return map(_pair, self._batches)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def _pair(batch: Any) -> Any:
    return (batch, batch.new_zeros(len(batch))) if isinstance(batch, Tensor) and batch.dim() else batch


def combine(
    model: nn.Module,
    blocks: Sequence[Block],
    curvature: Curvature,
    quantizer: Quantizer,
    inputs: Sequence[Tensor],
    progress: Progress = SILENT,
) -> Sensitivity:
    """The curvature of each block beside its weight errors, and its activations' where their curvature was measured.

    `inputs` are batches (N, ...) of the network's input; `progress` is advanced by each sample where activations count.
    """
    found = curvature.estimates
    by_activations = any("activation_trace" in estimates for estimates in found.values())
    errors = activation_errors(model, blocks, inputs, quantizer, progress=progress) if by_activations else {}
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
