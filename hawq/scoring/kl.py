"""Measured KL of each block quantised alone: a score from forward passes, without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hawq.curvature.memory import fitting_size, is_out_of_memory, limit_bytes
from hawq.distributed import all_gather
from hawq.errors import UserError
from hawq.measurement import memory_in_use_bytes
from hawq.modes import analysis_mode
from hawq.quantization import LSQ, Quantizer
from hawq.records import BIT_WIDTHS, Block, ScoreTable
from hawq.scoring.work import Conditions, Ledger, block_weights, gradient_seconds, places, told
from hawq.single_blocks import SingleBlocks
from hawq.structures import main_output
from hawq.trials import divergence, log_probabilities, mean_with_error

SOFTENED = 2.0  # T: it ranks whole plans of four networks with ρ of at least 0.90, 4 of at least 0.86 (docs/LOG.md)
_KEPT = 0.3  # of the memory that is free, for what precedes a block


def kl_score(
    model: nn.Module,
    blocks: Sequence[Block],
    images: Sequence[Tensor],
    calibration: Sequence[Tensor],
    quantizer: Quantizer | None = None,
    *,
    activations: bool = False,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    temperature: float = SOFTENED,
    carry_batch_norm: bool = True,
    reuse: bool = True,
    conditions: Conditions | None = None,
) -> ScoreTable:
    """Ω_i(b) = mean over images of T² · KL(softmax(z/T) ‖ softmax(z_b/T)), z_b with block i alone at b bits.

    Its errors are standard errors over the images, each of which is paired with itself.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        images: inputs (N, ...), in a group of processes those of this one; no labels are needed.
        calibration: inputs (N, ...) for batch norm's statistics and the ranges of activations, the same everywhere.
        quantizer: LSQ unless given.
        activations: whether the input activations of each block are quantised alone as well.
        bit_widths: to measure.
        temperature: T, softens the outputs.
        carry_batch_norm: see `hawq.quantize`.
        reuse: whether what comes before a block is remembered instead of computed for every bit-width.
        conditions: checkpoint, memory limit, progress.

    Raises:
        UserError: fewer than two images, outputs that are no distribution or not finite, or too little memory.
    """
    conditions = conditions or Conditions()
    count = sum(all_gather(sum(map(len, images))))
    if count < 2:
        raise UserError("score kl is measured on at least two images: their spread gives its error")
    images, limit = _fitted(model, images, conditions.memory_limit_gib)
    quantizer = quantizer or LSQ()
    while True:
        kept = {} if limit is None else {"bytes_kept": _KEPT * max(limit - _in_use(model), 0.0)}
        ledger = Ledger(conditions)
        try:
            single = SingleBlocks(
                model, blocks, images, calibration, quantizer, carry_batch_norm=carry_batch_norm, reuse=reuse, **kept
            )
            wanted = places(blocks, bit_widths, activations=activations)
            _measure(single, wanted, temperature, ledger, conditions)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            largest = max(map(len, images), default=0)
            if largest <= 1:
                raise UserError("memory runs out with a single image in a batch: use a smaller input") from error
        images = _cut(images, largest // 2)
    return _table(ledger, model, blocks, images, count)


def _table(
    ledger: Ledger, model: nn.Module, blocks: Sequence[Block], images: Sequence[Tensor], count: int
) -> ScoreTable:
    """The measured means with their errors; `count` is the number of images of all processes."""
    weights = [weight for block in blocks for weight in block_weights(model, block)]
    unit = gradient_seconds(model, weights, images[0], count) if images else 0.0
    return ledger.table("kl", {place: (value, error) for place, (value, error) in ledger.values.items()}, unit, count)


def _measure(
    single: SingleBlocks,
    wanted: Sequence[tuple[str, str, int]],
    temperature: float,
    ledger: Ledger,
    conditions: Conditions,
) -> None:
    """Adds what is still wanted to the ledger, block by block."""
    expected = [log_probabilities(outputs, temperature) for outputs in _finite(single)]
    with told(conditions, "kl", len(wanted), len(ledger.values)) as task:
        for place in wanted:
            if place in ledger.values:
                continue
            with single.quantized(*place):
                own = [
                    divergence(before, log_probabilities(outputs, temperature), temperature)
                    for before, outputs in zip(expected, _finite(single), strict=True)
                ]
            each = torch.cat([part for parts in all_gather(own) for part in parts])
            ledger.values[place] = [*mean_with_error(each)]
            ledger.save()
            task.advance(1, f"{place[0]} at {place[2]} bits: {ledger.values[place][0]:.2g}")


def _finite(single: SingleBlocks) -> Iterator[Tensor]:
    """The network's outputs batch by batch. Raises UserError where they are not finite."""
    for outputs in map(main_output, single.run()):
        if not bool(outputs.isfinite().all()):
            raise UserError("the outputs of the network are not finite: no KL can be measured, check the weights")
        yield outputs


def _cut(images: Sequence[Tensor], size: int) -> list[Tensor]:
    """The same images in batches of at most `size`."""
    return [part for batch in images for part in batch.split(size)]


def _fitted(model: nn.Module, images: Sequence[Tensor], gib: float | None) -> tuple[list[Tensor], float | None]:
    """The images in batches that stay below a limit, and this in bytes: without one a share of what is free."""
    limit = limit_bytes(next(model.parameters()).device, gib)
    if limit is None:
        return list(images), None
    return _cut(images, _fitting_size(model, images, limit, refuses=gib is not None)), limit


def _in_use(model: nn.Module) -> float:
    return memory_in_use_bytes(next(model.parameters()).device)


def _fitting_size(model: nn.Module, images: Sequence[Tensor], limit_bytes: float, *, refuses: bool) -> int:
    """The largest batch whose forward pass stays below the limit beside what is remembered."""
    batch = max(images, key=len, default=torch.zeros(1))
    copies = 2 * sum(p.numel() * p.element_size() for p in model.parameters())

    def held() -> float:
        in_use = _in_use(model)
        return in_use + _KEPT * max(limit_bytes - in_use, 0.0) + copies

    with analysis_mode(model, []), torch.no_grad():
        return fitting_size(lambda size: model(batch[:size]), len(batch), limit_bytes, held, refuses=refuses)
