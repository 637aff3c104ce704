"""Putting quantisers into a network: any `nn.Module`, no subclassing, the float network untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.blocks import trace_blocks, trace_layers
from hawq.modes import eval_mode
from hawq.quantization.batch_norm import CarriedBatchNorm
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.lsq import LSQ
from hawq.records import FLOAT_BITS, IMAGE_BITS, BitPlan, Block

BIT_WIDTHS = tuple(range(1, 9))
_CALIBRATION_VALUES = 200_000  # activations of one layer that its range is chosen from


class Quantizer(Protocol):
    """Makes the quantisers of weights and of layer inputs."""

    @property
    def name(self) -> str: ...

    def weight(self, bits: int) -> FakeQuantizer: ...

    def activation(self, bits: int) -> FakeQuantizer: ...


@dataclass(frozen=True)
class Quantization:
    """What a quantised network carries with it: its blocks and the plan they follow."""

    blocks: tuple[Block, ...]
    plan: BitPlan


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
        model: the float network; it stays as it is.
        blocks: from `find_blocks`; traced with the first calibration batch if they have not been.
        plan: from `allocate`; its block names must be those of `blocks`.
        calibration: batches of inputs (N, ...) that activation ranges are chosen from.
        quantizer: LSQ unless given.
        carry_batch_norm: statistics of batch norm follow what quantising changes on the calibration batches.

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


def attach(model: nn.Module, blocks: Sequence[Block], plan: BitPlan, quantizer: Quantizer) -> nn.Module:
    """A copy of `model` with a quantiser on every planned weight and layer input, all still passing through.

    A weight's quantiser is a parametrisation of `layer.weight`; an input's is `layer.input_quantizer`, called by a
    pre-forward hook. Layers that read the image keep 8-bit inputs. Raises ValueError for a plan of another model.
    """
    check_plan_fits(blocks, plan)
    copied = copy.deepcopy(model)
    layers = dict(copied.named_modules())
    shared: dict[int, FakeQuantizer] = {}  # layers that share a weight share its quantiser
    weights = {name: id(getattr(layer, "weight", None)) for name, layer in layers.items()}
    for block in blocks:
        precision = plan.precisions[block.name]
        for name in block.layers:
            layer = layers[name]
            if precision.weight_bits < FLOAT_BITS:
                made = shared.setdefault(weights[name], quantizer.weight(precision.weight_bits))
                parametrize.register_parametrization(layer, "weight", made)
            if precision.activation_bits < FLOAT_BITS:
                bits = IMAGE_BITS if name in block.image_layers else precision.activation_bits
                attach_input_quantizer(layer, quantizer.activation(bits))
    copied.quantization = Quantization(tuple(blocks), plan)  # type: ignore[assignment]
    device = next(model.parameters()).device
    return copied.to(device)


def check_plan_fits(blocks: Sequence[Block], plan: BitPlan) -> None:
    """Raises ValueError when the plan's blocks are not the model's."""
    names = {block.name for block in blocks}
    unknown, missing = sorted(plan.precisions.keys() - names), sorted(names - plan.precisions.keys())
    if unknown or missing:
        raise ValueError(
            f"the plan is for another model: it lacks blocks {missing or 'none'} and names unknown blocks "
            f"{unknown or 'none'}; the model's blocks are {sorted(names)}"
        )


def attach_input_quantizer(layer: nn.Module, quantizer: FakeQuantizer) -> None:
    """Makes `quantizer` act on the first input of `layer`."""
    layer.input_quantizer = quantizer
    layer.register_forward_pre_hook(_quantize_input)


def weight_quantizer(layer: nn.Module) -> FakeQuantizer | None:
    """The quantiser of a layer's weight, or None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    first = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    return first if isinstance(first, FakeQuantizer) else None


def enable(
    model: nn.Module, names: Sequence[str], calibration: Sequence[Tensor], *, carry_batch_norm: bool = True
) -> None:
    """Switches on the quantisers of the named blocks, ranges chosen from weights and from `calibration` inputs.

    Batch norm's statistics are carried over once the weights are quantised, so that activations are seen as they will
    be, and again at the end.
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


def weight_errors(
    weights: Sequence[Tensor], quantizer: Quantizer, bit_widths: Sequence[int] = BIT_WIDTHS
) -> dict[int, float]:
    """‖Q_b(W_i) − W_i‖²₂ of one block for each width b, summed over its weights."""
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
    """Block → mean over samples of ‖Q_b(a) − a‖²₂ for each width b, a the inputs of its layers (the image is not one).

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


def _quantize_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (layer.input_quantizer(inputs[0]), *inputs[1:])  # type: ignore[operator]


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
