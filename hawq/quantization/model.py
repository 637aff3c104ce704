"""Quantising a network: ranges from data, and the errors that quantisation makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.blocks import trace_blocks
from hawq.costs import plan_cost
from hawq.layers import refuse_computed_weights, weight_of
from hawq.progress import SILENT, Progress, Task
from hawq.quantization.attaching import (
    Quantization,
    Quantizer,
    attach,
    check_plan_fits,
    input_quantizer,
    original_weight,
    refuse_quantized,
    weight_quantizer,
    weight_quantizer_for,
)
from hawq.quantization.batch_norm import CarriedBatchNorm, has_batch_norm
from hawq.quantization.calibration import input_batches, observe_inputs
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.lsq import LSQ
from hawq.quantization.residuals import RESIDUALS, enable_residual_quantizers
from hawq.records import BIT_WIDTHS, BitPlan, Block
from hawq.tracing import trace_layers


def quantize(
    model: nn.Module,
    blocks: Sequence[Block],
    plan: BitPlan,
    calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    quantizer: Quantizer | None = None,
    *,
    carry_batch_norm: bool = True,
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    progress: Progress = SILENT,
) -> nn.Module:
    """A fake-quantised copy of `model`: each block's weights and layer inputs on the grids that the plan gives.

    Args:
        model: the float network; left unchanged.
        blocks: from `find_blocks`; traced with the first calibration batch if they are not yet. Layers that it does
            not call then stay float and leave the plan, as the log says.
        plan: from `allocate`; its block names must be those of `blocks`.
        calibration: what activation ranges are chosen from: batches of inputs (N, ...) or of (inputs, targets), a
            DataLoader, a generator, or one batch.
        quantizer: LSQ unless given.
        carry_batch_norm: adapt batch norm's statistics to what quantisation changes on the calibration batches.
        statistics: those of the float network on these batches, from `batch_statistics`, where many plans are tried.
        progress: advanced by every sample of every pass over them.

    Raises:
        ValueError: the plan names other blocks than the model has, the network is quantised already, a weight is
            computed from others, or there is no calibration batch that can be used.
    """
    check_plan_fits(blocks, plan)
    refuse_quantized(model)
    refuse_computed_weights(model, [name for block in blocks for name in block.layers])
    batches = input_batches(calibration, next(model.parameters()).device)
    blocks, plan = reached_blocks(model, blocks, plan, batches[0][:1])
    quantized = attach(model, blocks, plan, quantizer or LSQ())
    enable(
        quantized,
        list(plan.precisions),
        batches,
        carry_batch_norm=carry_batch_norm,
        statistics=statistics,
        progress=progress,
    )
    return quantized


def reached_blocks(
    model: nn.Module, blocks: Sequence[Block], plan: BitPlan, example: Tensor
) -> tuple[tuple[Block, ...], BitPlan]:
    """Blocks traced with `example` (1, ...), unless they are, and the plan for what it reaches, with its cost.

    Raises ValueError for a plan of another model.
    """
    check_plan_fits(blocks, plan)
    if all(block.macs is not None for block in blocks):
        return tuple(blocks), plan
    traced = trace_blocks(model, blocks, example)
    if [(b.name, b.layers) for b in traced] == [(b.name, b.layers) for b in blocks]:
        return traced, plan
    precisions = {block.name: plan.precisions[block.name] for block in traced}
    return traced, replace(plan, precisions=precisions, cost=plan_cost(traced, precisions))


def enable(
    model: nn.Module,
    names: Sequence[str],
    calibration: Sequence[Tensor],
    *,
    carry_batch_norm: bool = True,
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    least_bits: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Switches on the quantisers of the named blocks, with ranges chosen from weights and from calibration inputs.

    Batch norm's statistics are carried over once the weights are quantised, so that activations are observed as they
    will be, and again at the end.

    Args:
        model: from `attach`; changed in place.
        names: of blocks; none for no change.
        calibration: batches of inputs (N, ...).
        carry_batch_norm, statistics, progress: see `quantize`; statistics are those of `model` as it is given.
        least_bits: that weights and layer inputs have until they are enabled again, where the plan gives them fewer.

    Raises:
        UserError: what enters a layer is not finite.
    """
    if not names:
        return
    carried_over = calibration if carry_batch_norm else []
    measured = 3 if statistics is None else 2
    passes = 1 + measured * bool(carried_over) * has_batch_norm(model) + hasattr(model, RESIDUALS)
    with progress.task("calibration", passes * sum(map(len, calibration))) as task:
        carried = CarriedBatchNorm(model, carried_over, task, statistics)
        _enable(model, set(names), calibration, carried, least_bits, task)


def _enable(
    model: nn.Module,
    names: set[str],
    calibration: Sequence[Tensor],
    carried: CarriedBatchNorm,
    least_bits: int,
    task: Task,
) -> None:
    info: Quantization = model.quantization  # type: ignore[assignment]
    wanted = {layer for block in info.blocks if block.name in names for layer in block.layers}
    layers = {name: module for name, module in model.named_modules() if name in wanted}
    for layer in layers.values():
        quantizer = weight_quantizer(layer)
        if quantizer is not None:
            quantizer.widen(least_bits)
            quantizer.initialise(original_weight(layer))
    carried.follow()
    grids = {name: grid for name, layer in layers.items() if (grid := input_quantizer(layer)) is not None}
    if grids:
        observed = observe_inputs(model, {name: layers[name] for name in grids}, calibration, task)
        for name, sample in observed.items():
            grids[name].widen(least_bits)
            grids[name].initialise(sample.values_and_extremes())
        carried.follow()
    if all(quantizer.enabled for quantizer in _quantizers(model, info)):
        enable_residual_quantizers(model, calibration, task)


def _quantizers(model: nn.Module, info: Quantization) -> Iterator[FakeQuantizer]:
    """The quantisers of all planned weights."""
    layers = dict(model.named_modules())
    for block in info.blocks:
        for name in block.layers:
            quantizer = weight_quantizer(layers[name])
            if quantizer is not None:
                yield quantizer


def weight_errors(
    weights: Sequence[Tensor | nn.Module], quantizer: Quantizer, bit_widths: Sequence[int] = BIT_WIDTHS
) -> dict[int, float]:
    """Bit-width b → ‖Q_b(W_i) − W_i‖²₂ of one block, summed over its weights.

    Args:
        weights: the layers that hold the weights (`hawq.blocks.block_layers`), or tensors (out, in, ...) as they are.
        quantizer: decides Q_b.
        bit_widths: of 1 to 8 bits each.
    """
    return {bits: sum(_weight_error(weight, quantizer, bits) for weight in weights) for bits in bit_widths}


def _weight_error(weight: Tensor | nn.Module, quantizer: Quantizer, bits: int) -> float:
    if isinstance(weight, nn.Module):
        return _squared_error(weight_of(weight), weight_quantizer_for(weight, quantizer, bits))
    return _squared_error(weight, quantizer.weight(bits))


def quantized_weight(layer: nn.Module, quantizer: Quantizer, bits: int) -> Tensor:
    """Q_b(W) of a layer, of the shape of W, with the range that the quantiser chooses from W."""
    return QuantizedWeights(quantizer)(layer, bits)


class QuantizedWeights:
    """`quantized_weight` of layers whose weights stay as they are: each range is chosen once, which saves most time.

    Args:
        quantizer: chooses the ranges.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer, self._made = quantizer, dict[tuple[nn.Module, int], FakeQuantizer]()

    @torch.no_grad()
    def __call__(self, layer: nn.Module, bits: int) -> Tensor:
        """Q_b(W) of a layer, a new tensor of the shape of W."""
        weight = weight_of(layer).detach()
        made = self._made.get((layer, bits))
        if made is None:
            made = self._made[layer, bits] = weight_quantizer_for(layer, self._quantizer, bits).to(weight.device)
            made.initialise(weight)
        return made(weight)  # type: ignore[no-any-return]


def activation_errors(
    model: nn.Module,
    blocks: Sequence[Block],
    inputs: Sequence[Tensor],
    quantizer: Quantizer,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    progress: Progress = SILENT,
) -> dict[str, dict[int, float]]:
    """Block → bit-width b → mean over samples of ‖Q_b(a) − a‖²₂, a what enters its layers (the image is not counted).

    Ranges come from a random sample of the values and their extremes, errors from the sample.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        inputs: batches of the network's inputs (N, ...).
        quantizer: decides Q_b.
        bit_widths: of 1 to 8 bits each.
        progress: advanced by every sample.

    Raises:
        UserError: what enters a layer is not finite.
    """
    counted = {block.name: [name for name in block.layers if name not in block.image_layers] for block in blocks}
    names = [name for members in counted.values() for name in members]
    layers = dict(model.named_modules())
    observing = progress.task("activations of the float network", sum(map(len, inputs)))
    with opened_attention(model), observing as task:
        samples = observe_inputs(model, {name: layers[name] for name in names}, inputs, task)
        elements = trace_layers(model, names, inputs[0][:1])

    def error(name: str, bits: int) -> float:
        values = samples[name].values()
        total = _squared_error(values, quantizer.activation(bits), samples[name].values_and_extremes())
        return total / values.numel() * elements[name].num_activations

    return {
        block: {bits: sum(error(name, bits) for name in members if name in samples) for bits in bit_widths}
        for block, members in counted.items()
    }


@torch.no_grad()
def _squared_error(x: Tensor, quantizer: FakeQuantizer, seen: Tensor | None = None) -> float:
    """‖Q(x) − x‖² with the range that the quantiser chooses from `seen`, or from x."""
    quantizer.to(x.device).initialise(x.detach() if seen is None else seen)
    return float((quantizer(x) - x).double().square().sum())
