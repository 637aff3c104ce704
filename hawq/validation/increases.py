"""What quantising single blocks truly does: each alone, measured on held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hawq.curvature import Batch
from hawq.errors import UserError
from hawq.progress import SILENT, Progress
from hawq.quantization import Quantizer
from hawq.records import ACTIVATIONS, WEIGHTS, Block, LossIncrease, LossIncreases, from_dict, to_dict
from hawq.resuming import Checkpoint
from hawq.single_blocks import SingleBlocks
from hawq.structures import main_output
from hawq.trials import divergence, log_probabilities, mean_with_error, per_image


def loss_increases(
    model: nn.Module,
    blocks: Sequence[Block],
    quantizer: Quantizer,
    bit_widths: Sequence[int],
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    calibration: Sequence[Tensor] = (),
    checkpoint: Checkpoint | None = None,
    save_every_seconds: float = 20.0,
    progress: Progress = SILENT,
    *,
    activations: bool | None = None,
    carry_batch_norm: bool = False,
) -> LossIncreases:
    """Quantises each block alone, at each bit-width, and measures what that does to the outputs and loss of each image.

    Args:
        model: the float network; it is not changed.
        blocks: from `find_blocks`, traced.
        quantizer: decides Q_b.
        bit_widths: to try.
        batches: held-out (inputs (N, ...), targets (N, ...)) pairs on the model's device.
        loss: (outputs, targets) → loss of each sample (N,).
        calibration: inputs (N, ...) that activation ranges and statistics of batch norm are taken from.
        checkpoint: where finished blocks are stored, at most every `save_every_seconds`, and resumed from.
        progress: notified of each trial.
        activations: whether the input activations of each block are quantised alone as well; where there is a
            calibration unless given.
        carry_batch_norm: see `hawq.quantize`.

    Raises:
        UserError: fewer than two images, or a loss that is not finite.
    """
    inputs = [images for images, _ in batches]
    if sum(map(len, inputs)) < 2:
        raise UserError("validation needs at least two held-out images: their differences give the standard error")
    single = SingleBlocks(model, blocks, inputs, calibration, quantizer, carry_batch_norm=carry_batch_norm)
    outcomes = _Outcomes(single, batches, loss)
    kept = checkpoint.load() if checkpoint else None
    increases = [from_dict(row, LossIncrease) for row in kept["increases"]] if kept else []
    ready, saved = {row.block for row in increases}, time.monotonic()
    both = bool(calibration) if activations is None else activations
    trials = {block.name: list(_trials(block, bit_widths, both)) for block in blocks}
    with progress.task("validation", sum(map(len, trials.values())), done=len(increases)) as task:
        for name in (block.name for block in blocks if block.name not in ready):
            for kind, bits in trials[name]:
                with single.quantized(name, kind, bits):
                    losses, hits, kl = outcomes.now()
                if not bool(losses.isfinite().all()):
                    raise UserError(f"with the {kind} of block {name!r} at {bits} bits the loss is not finite")
                each = [losses - outcomes.losses, 100 * (outcomes.hits - hits), *([] if kl is None else [kl])]
                changes = [number for values in each for number in mean_with_error(values)]
                increases.append(LossIncrease(name, kind, bits, *changes))
                task.advance(1, f"{name} at {bits} bits: {increases[-1].loss:+.2g}")
            if checkpoint and time.monotonic() - saved >= save_every_seconds:
                checkpoint.save({"increases": [to_dict(row) for row in increases]})
                saved = time.monotonic()
    means = float(outcomes.losses.mean()), 100 * float(outcomes.hits.mean())
    return LossIncreases(len(outcomes.losses), *means, tuple(increases))


def _trials(block: Block, bit_widths: Sequence[int], activations: bool) -> Iterator[tuple[str, int]]:
    """What is tried with one block; one that reads only the image has no activations of its own."""
    yield from ((WEIGHTS, bits) for bits in bit_widths)
    if activations and block.num_activations:
        yield from ((ACTIVATIONS, bits) for bits in bit_widths)


class _Outcomes:
    """Loss and hits of each image (N,), of the float network at first; float64, on the CPU."""

    def __init__(
        self, single: SingleBlocks, batches: Sequence[Batch], loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self._single, self._batches, self._loss = single, batches, loss
        self._float: list[Tensor] | None = None
        self.losses, self.hits, _ = self.now()

    def now(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss, hits, and KL(float ‖ as it is now) of each image; no KL for outputs that are no distribution."""
        losses, hits, found = [], [], []
        for outputs, (_, labels) in zip(map(main_output, self._single.run()), self._batches, strict=True):
            losses.append(per_image(self._loss(outputs, labels)))
            hits.append(per_image(outputs.argmax(1) == labels))
            if outputs.dim() >= 2 and outputs.shape[1] >= 2 and bool(outputs.isfinite().all()):
                found.append(log_probabilities(outputs))
        complete = len(found) == len(self._batches)
        if self._float is None:
            self._float = found if complete else []
        kl = [divergence(*pair) for pair in zip(self._float, found, strict=True)] if complete and self._float else None
        return torch.cat(losses), torch.cat(hits), None if kl is None else torch.cat(kl)
