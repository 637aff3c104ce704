"""The true increases of the loss: each block quantised alone, measured on held-out images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hawq.costs import plan_cost
from hawq.curvature import Batch, CurvatureCheckpoint
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.progress import SILENT, Progress
from hawq.quantization import Quantizer, quantize
from hawq.records import (
    ACTIVATIONS,
    FLOAT_BITS,
    WEIGHTS,
    BitPlan,
    Block,
    LossIncrease,
    LossIncreases,
    Precision,
    from_dict,
    to_dict,
)


def loss_increases(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer,
    bit_widths: Sequence[int],
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    calibration: Sequence[Tensor] = (),
    checkpoint: CurvatureCheckpoint | None = None,
    save_every_seconds: float = 20.0,
    progress: Progress = SILENT,
) -> LossIncreases:
    """Quantises each block alone, at each bit-width, and measures what that does to the loss of each image.

    Args:
        model: the float network; it is not changed.
        blocks: from `find_blocks`, traced.
        quantizer: decides Q_b.
        bit_widths: to try.
        batches: held-out (inputs (N, ...), targets (N, ...)) pairs on the model's device.
        loss: (outputs, targets) → loss of each sample (N,).
        calibration: inputs (N, ...) that activation ranges are chosen from; where given, the input activations of
            each block are quantised alone as well.
        checkpoint: where finished blocks are stored, at most every `save_every_seconds`, and resumed from.
        progress: notified of each trial.

    Raises:
        UserError: fewer than two images, or a loss that is not finite.
    """
    float_losses, float_hits = _outcomes(model, batches, loss)
    if len(float_losses) < 2:
        raise UserError("validation needs at least two held-out images: their differences give the standard error")
    kept = checkpoint.load() if checkpoint else None
    increases = [from_dict(row, LossIncrease) for row in kept["increases"]] if kept else []
    ready, saved = {row.block for row in increases}, time.monotonic()
    trials = {block.name: list(_trials(block, bit_widths, bool(calibration))) for block in blocks}
    with progress.task("validation", sum(map(len, trials.values())), done=len(increases)) as task:
        for name in (block.name for block in blocks if block.name not in ready):
            for kind, bits, precision in trials[name]:
                inputs = calibration if kind == ACTIVATIONS else [batches[0][0][:1]]  # weights need no calibration
                losses, hits = _outcomes(_alone(model, blocks, name, precision, quantizer, inputs), batches, loss)
                if not bool(losses.isfinite().all()):
                    raise UserError(f"with the {kind} of block {name!r} at {bits} bits the loss is not finite")
                changes = (*_mean(losses - float_losses), *_mean(100 * (float_hits - hits)))
                increases.append(LossIncrease(name, kind, bits, *changes))
                task.advance(1, f"{name} at {bits} bits: {increases[-1].loss:+.2g}")
            if checkpoint and time.monotonic() - saved >= save_every_seconds:
                checkpoint.save({"increases": [to_dict(row) for row in increases]})
                saved = time.monotonic()
    means = float(float_losses.mean()), 100 * float(float_hits.mean())
    return LossIncreases(len(float_losses), *means, tuple(increases))


def _trials(block: Block, bit_widths: Sequence[int], activations: bool) -> Iterator[tuple[str, int, Precision]]:
    """What is tried with one block; one that reads only the image has no activations of its own."""
    yield from ((WEIGHTS, bits, Precision(bits, FLOAT_BITS)) for bits in bit_widths)
    if activations and block.num_activations:
        yield from ((ACTIVATIONS, bits, Precision(FLOAT_BITS, bits)) for bits in bit_widths)


def _alone(
    model: nn.Module,
    blocks: Sequence[Block],
    name: str,
    precision: Precision,
    quantizer: Quantizer,
    inputs: Sequence[Tensor],
) -> nn.Module:
    """A copy of `model` in which one block alone is quantised."""
    untouched = Precision(FLOAT_BITS, FLOAT_BITS)
    precisions = {block.name: precision if block.name == name else untouched for block in blocks}
    plan = BitPlan(precisions, "alone", plan_cost(blocks, precisions))
    return quantize(model, blocks, plan, inputs, quantizer, carry_batch_norm=False)


def _outcomes(
    model: nn.Module, batches: Sequence[Batch], loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Loss of each image (N,), and 1 where the largest output is its label, else 0 (N,); float64."""
    losses, hits = [], []
    with analysis_mode(model, []), torch.no_grad():
        for images, labels in batches:
            outputs = model(images)
            losses.append(loss(outputs, labels).double())
            hits.append((outputs.argmax(1) == labels).double())
    return torch.cat(losses), torch.cat(hits)


def _mean(differences: Tensor) -> tuple[float, float]:
    """Mean of (N,) and its standard error."""
    return float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))
