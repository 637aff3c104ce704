"""LIMPQ's score: the quantisation steps that a layer learns at each bit-width in a short joint training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hawq.curvature import Batch, Loss
from hawq.curvature.memory import fitting_size, limit_bytes
from hawq.curvature.samples import Samples, fast_layout
from hawq.distributed import all_gather
from hawq.errors import UserError
from hawq.measurement import memory_in_use_bytes
from hawq.quantization import LSQ, Quantizer
from hawq.records import ACTIVATIONS, BIT_WIDTHS, WEIGHTS, Block, ScoreTable
from hawq.scoring.joint_networks import JointNetworks
from hawq.scoring.joint_training import JointTraining, Trainer, refuse_fixed_steps
from hawq.scoring.work import Conditions, Ledger, Place, block_weights, gradient_seconds, places, told

_HALVES = 2
_FACTOR = {WEIGHTS: 2.0, ACTIVATIONS: 1.0}  # α of the weights, as in the published search


def learned_steps_score(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    calibration: Sequence[Tensor],
    quantizer: Quantizer | None = None,
    *,
    activations: bool = False,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    training: JointTraining | None = None,
    conditions: Conditions | None = None,
) -> ScoreTable:
    """Ω_i(b) = α Σ_l s_l(b), the steps that the layers l of block i learn at b bits (LIMPQ, 2203.08368).

    s_l is the trained step of layer l, with one step per channel their mean, in units of the weights (α = 2) or of the
    layer's input (α = 1), since LIMPQ minimises Σ s_a + 2 Σ s_w. Large steps stand for layers that need more bits; the
    numbers rank plans, and are no increase of the loss in nats.

    `JointTraining` says how they are trained, and where that departs from the paper. Blocks that a plan fixes (LIMPQ's
    first and last layer, at 8 bits) have the bits of all others here. A step that is smaller at fewer bits stays as it
    is; the published search never chooses its bits.

    Each half of the images trains for itself. The value is the mean of both, and its error half their difference: that
    is what other images and another order of them would change, not what a longer training would.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        batches: fixed (inputs, targets) pairs, in a group of processes those of this one.
        loss: mean loss over a batch; `DistillationLoss` needs no labels.
        calibration: inputs (N, ...) for batch norm's statistics and the ranges of activations, the same everywhere.
        quantizer: LSQ unless given.
        activations: whether the input activations have b bits as well, and a score.
        bit_widths: to train together.
        training: its length, learning rate, batch size and seed.
        conditions: checkpoint, memory limit, progress.

    Raises:
        UserError: a quantiser without trained steps, fewer than two images, a loss that is not finite, or too little
            memory.
    """
    conditions, quantizer, training = conditions or Conditions(), quantizer or LSQ(), training or JointTraining()
    refuse_fixed_steps(quantizer, activations=activations)
    if sum(all_gather(sum(len(inputs) for inputs, _ in batches))) < _HALVES:
        raise UserError("score learned_steps is measured on at least two images: its error comes from two halves")
    ledger, wanted = Ledger(conditions), places(blocks, bit_widths, activations=activations)
    samples = Samples(fast_layout(model, batches))
    networks = JointNetworks(model, blocks, bit_widths, calibration, quantizer, activations=activations)
    _fit(networks, samples, loss, conditions.memory_limit_gib)
    _train(networks, samples, loss, training, ledger, wanted, conditions)
    weights = [weight for block in blocks for weight in block_weights(model, block)]
    inputs = [inputs for inputs, _ in samples.batches]
    unit = gradient_seconds(model, weights, inputs[0], samples.count) if inputs else 0.0
    predicted = {place: _summary(place, ledger.values[place]) for place in wanted}
    return ledger.table("learned_steps", predicted, unit, samples.count)


def _summary(place: Place, values: Sequence[float]) -> tuple[float, float]:
    """Mean of the two halves, and its standard error."""
    first, second = (_FACTOR[place[1]] * value for value in values)
    return (first + second) / 2, abs(first - second) / 2


def _train(
    networks: JointNetworks,
    samples: Samples,
    loss: Loss,
    settings: JointTraining,
    ledger: Ledger,
    wanted: Sequence[Place],
    conditions: Conditions,
) -> None:
    """Adds the learned steps of each half to the ledger."""
    begun: dict[str, Any] = ledger.further
    finished = min((len(ledger.values.get(place, ())) for place in wanted), default=0)
    start = Trainer(networks, samples, loss, settings, 0).state()
    done = finished * settings.iterations + (begun.get("iteration", 0) if begun.get("half") == finished else 0)
    with told(conditions, "learned_steps", _HALVES * settings.iterations, done) as task:
        for half in range(finished, _HALVES):
            trainer = Trainer(networks, samples, loss, settings, half)
            trainer.restore(begun if begun.get("half") == half else start)
            while trainer.iteration < settings.iterations:
                mean = trainer.advance()
                ledger.save(trainer.state)
                task.advance(1, f"loss {mean:.2g}")
            steps = networks.steps()
            for place in wanted:
                ledger.values.setdefault(place, []).append(steps[place])


def _fit(networks: JointNetworks, samples: Samples, loss: Loss, gib: float | None) -> None:
    """Cuts this process' batches so that a pass stays below a limit: without one, a share of what is free."""
    parameters = networks.parameters
    device, bits = parameters[0].device, max(networks.trained)
    limit = limit_bytes(device, gib)
    if limit is None or not samples.local_count:
        return
    inputs, targets = max(samples.batches, key=lambda batch: len(batch[0]))
    further = 2 * sum(p.numel() * p.element_size() for p in parameters)  # gradients and momenta
    size = fitting_size(
        lambda few: networks.gradient(bits, [(inputs[:few], targets[:few])], loss, few),
        len(inputs),
        limit,
        lambda: memory_in_use_bytes(device) + further,
        refuses=gib is not None,
    )
    samples.cut(size)
