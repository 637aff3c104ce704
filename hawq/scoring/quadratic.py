"""The quadratic term itself that λ_i bounds: ½ ΔW_iᵀ H_ii ΔW_i, one product per block and bit-width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hawq.attention import with_open_attention
from hawq.blocks import block_layers
from hawq.curvature import Batch, Loss
from hawq.layers import weight_of
from hawq.quantization import LSQ, QuantizedWeights, Quantizer
from hawq.records import BIT_WIDTHS, WEIGHTS, Block, ScoreTable
from hawq.scoring.work import Conditions, Ledger, block_operator, parts_of, places, told
from hawq.trials import mean_with_error


@with_open_attention
def quadratic_score(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    quantizer: Quantizer | None = None,
    *,
    curvature: str = "hessian",
    bit_widths: Sequence[int] = BIT_WIDTHS,
    conditions: Conditions | None = None,
) -> ScoreTable:
    """Ω_i(b) = ½ ΔW_iᵀ H_ii ΔW_i with ΔW_i = Q_b(W_i) − W_i, of which ½ λ_i ‖ΔW_i‖² is the bound of HAWQ.

    Products are made on eighths of the samples, one after the other, which costs no more than all at once; the spread
    of the eighths gives the standard error. Values are those of all samples.

    Args:
        model: the float network; left unchanged.
        blocks: from `find_blocks`.
        batches: fixed (inputs, targets) pairs, in a group of processes those of this one.
        loss: mean loss over a batch.
        quantizer: LSQ unless given.
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix.
        bit_widths: to measure.
        conditions: checkpoint, memory limit, progress.

    Raises:
        ValueError: as `BlockOperator` does.
    """
    conditions, quantized = conditions or Conditions(), QuantizedWeights(quantizer or LSQ())
    operator = block_operator(curvature, model, blocks, batches, loss, conditions.memory_limit_gib)
    ledger = Ledger(conditions)
    wanted = places(blocks, bit_widths, activations=False)
    parts, sizes = parts_of(operator)
    done = min((len(ledger.values.get(place, ())) for place in wanted), default=0)
    with told(conditions, "quadratic", len(parts) * len(bit_widths), done * len(bit_widths)) as task:
        for own in parts[done:]:
            part = operator.of_samples(own, seen=operator.seen)
            for bits in bit_widths:
                shifts = {block.name: _shift(model, block, quantized, bits) for block in blocks}
                for name, product in part.products(shifts).items():
                    own_values = ledger.values.setdefault((name, WEIGHTS, bits), [])
                    own_values.append(0.5 * float(shifts[name].double() @ product.double()))
                task.advance(1, f"{bits} bits")
            part.release()
            operator.cost.add_pass(part.cost.gradient_seconds)
            ledger.save()
    gradient = operator.cost.gradient_seconds * len(parts)
    predicted = {place: _summary(ledger.values[place], sizes) for place in wanted}
    return ledger.table("quadratic", predicted, gradient, operator.num_samples)


def _summary(values: Sequence[float], sizes: Tensor) -> tuple[float, float]:
    """The value of all samples from those of their parts, and its standard error."""
    each = torch.tensor(values, dtype=torch.float64)
    return float((each * sizes).sum() / sizes.sum()), mean_with_error(each)[1]


def _shift(model: nn.Module, block: Block, quantized: QuantizedWeights, bits: int) -> Tensor:
    """Q_b(W_i) − W_i (n_i,), flat, in the order of the block's weights."""
    layers = block_layers(model, block)
    return torch.cat([(quantized(x, bits) - weight_of(x).detach()).reshape(-1) for x in layers])
