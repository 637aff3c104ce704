"""Quantising a network: ranges from data, and the errors that quantisation makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hawq.blocks import trace_blocks, trace_layers
from hawq.modes import eval_mode
from hawq.quantization.attaching import Quantization, Quantizer, attach, weight_quantizer
from hawq.quantization.batch_norm import CarriedBatchNorm
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.lsq import LSQ
from hawq.quantization.residuals import enable_residual_quantizers
from hawq.records import BIT_WIDTHS, BitPlan, Block

_CALIBRATION_VALUES = 200_000  # activations of one layer that its range is chosen from


def quantize(
    model: nn.Module,
    blocks: Sequence[Block],
    plan: BitPlan,
    calibration: Sequence[Tensor],
    quantizer: Quantizer | None = None,
    *,
    carry_batch_norm: bool = True,
) -> nn.Module:
    """A fake-quantised copy of `model`: each block's weights and layer inputs on the grids that the plan gives.

    Args:
        model: the float network; left unchanged.
        blocks: from `find_blocks`; traced with the first calibration batch if they are not yet.
        plan: from `allocate`; its block names must be those of `blocks`.
        calibration: batches of inputs (N, ...) that activation ranges are chosen from.
        quantizer: LSQ unless given.
        carry_batch_norm: adapt batch norm's statistics to what quantisation changes on the calibration batches.

    Raises:
        ValueError: the plan names other blocks than the model has, or there is no calibration batch.
    """
    if not calibration:
        raise ValueError("calibration is empty: give at least one batch of inputs, activation ranges come from it")
    if any(block.macs is None for block in blocks):
        blocks = trace_blocks(model, blocks, calibration[0][:1])
    quantized = attach(model, blocks, plan, quantizer or LSQ())
    enable(quantized, list(plan.precisions), calibration, carry_batch_norm=carry_batch_norm)
    return quantized


def enable(
    model: nn.Module, names: Sequence[str], calibration: Sequence[Tensor], *, carry_batch_norm: bool = True
) -> None:
    """Switches on the quantisers of the named blocks, with ranges chosen from weights and from calibration inputs.

    Batch norm's statistics are carried over once the weights are quantised, so that activations are observed as they
    will be, and again at the end.

    Args:
        model: from `attach`; changed in place.
        names: of blocks; none for no change.
        calibration: batches of inputs (N, ...).
        carry_batch_norm: see `quantize`.
    """
    if not names:
        return
    carried = CarriedBatchNorm(model, calibration if carry_batch_norm else [])
    info: Quantization = model.quantization  # type: ignore[assignment]
    wanted = {layer for block in info.blocks if block.name in set(names) for layer in block.layers}
    layers = {name: module for name, module in model.named_modules() if name in wanted}
    for layer in layers.values():
        quantizer = weight_quantizer(layer)
        if quantizer is not None:
            quantizer.initialise(layer.parametrizations.weight.original)  # type: ignore[union-attr, arg-type]
    carried.follow()
    observed = {name: layer for name, layer in layers.items() if hasattr(layer, "input_quantizer")}
    for name, values in _observe_inputs(model, observed, calibration).items():
        observed[name].input_quantizer.initialise(values)  # type: ignore[operator, union-attr]
    carried.follow()
    if all(quantizer.enabled for quantizer in _quantizers(model, info)):
        enable_residual_quantizers(model, calibration)


def _quantizers(model: nn.Module, info: Quantization) -> Iterator[FakeQuantizer]:
    """The quantisers of all planned weights."""
    layers = dict(model.named_modules())
    for block in info.blocks:
        for name in block.layers:
            quantizer = weight_quantizer(layers[name])
            if quantizer is not None:
                yield quantizer


def weight_errors(
    weights: Sequence[Tensor], quantizer: Quantizer, bit_widths: Sequence[int] = BIT_WIDTHS
) -> dict[int, float]:
    """Bit-width b → ‖Q_b(W_i) − W_i‖²₂ of one block, summed over its weights, tensors of any shape."""
    return {
        bits: sum(_squared_error(weight.detach(), quantizer.weight(bits)) for weight in weights) for bits in bit_widths
    }


def activation_errors(
    model: nn.Module,
    blocks: Sequence[Block],
    inputs: Sequence[Tensor],
    quantizer: Quantizer,
    bit_widths: Sequence[int] = BIT_WIDTHS,
) -> dict[str, dict[int, float]]:
    """Block → bit-width b → mean over samples of ‖Q_b(a) − a‖²₂, a the inputs of its layers (the image is not one).

    Ranges and errors come from an even subsample of the values in `inputs`, batches (N, ...) of the network's input.
    """
    counted = {block.name: [name for name in block.layers if name not in block.image_layers] for block in blocks}
    names = [name for members in counted.values() for name in members]
    layers = dict(model.named_modules())
    values = _observe_inputs(model, {name: layers[name] for name in names}, inputs)
    elements = trace_layers(model, names, inputs[0][:1])

    def error(name: str, bits: int) -> float:
        mean_square = _squared_error(values[name], quantizer.activation(bits)) / values[name].numel()
        return mean_square * elements[name].num_activations

    return {
        block: {bits: sum(error(name, bits) for name in members if name in values) for bits in bit_widths}
        for block, members in counted.items()
    }


@torch.no_grad()
def _squared_error(weight: Tensor, quantizer: FakeQuantizer) -> float:
    quantizer.to(weight.device).initialise(weight)
    return float((quantizer(weight) - weight).double().square().sum())


@torch.no_grad()
def _observe_inputs(model: nn.Module, layers: dict[str, nn.Module], calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """An even subsample of each layer's input values, in eval mode; without layers that are never called."""
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    share = _CALIBRATION_VALUES // max(len(calibration), 1)
    handles = [
        layer.register_forward_pre_hook(_collector(values[name], share), prepend=True) for name, layer in layers.items()
    ]
    try:
        with eval_mode(model):
            for inputs in calibration:
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in values.items() if parts}


def _collector(parts: list[Tensor], share: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].reshape(-1)
        parts.append(flat[:: max(flat.numel() // share, 1)].clone())

    return collect
