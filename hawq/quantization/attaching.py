"""Quantisers on the layers of any `nn.Module`: no subclassing, the float network untouched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.attention import open_attention
from hawq.errors import UserError
from hawq.layers import (
    Arguments,
    channel_axis,
    map_inputs,
    refuse_computed_weights,
    weight_identity,
    weight_name,
    weight_of,
)
from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.residuals import add_residual_quantizers
from hawq.records import FLOAT_BITS, IMAGE_BITS, BitPlan, Block

INPUT = "input_quantizer"  # the attribute of a layer


class Quantizer(Protocol):
    """Makes the quantisers of weights and of layer inputs."""

    @property
    def name(self) -> str:
        """The option of the group `quantizer` that it stands for."""
        ...

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        ...

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        ...


@dataclass(frozen=True)
class Quantization:
    """What a quantised network carries as `model.quantization`: its blocks and the plan they follow."""

    blocks: tuple[Block, ...]
    plan: BitPlan


def attach(model: nn.Module, blocks: Sequence[Block], plan: BitPlan, quantizer: Quantizer) -> nn.Module:
    """A copy of `model` with a quantiser on every planned weight and layer input, all still switched off.

    A weight's quantiser is a parametrisation of `layer.weight`; an input's is `layer.input_quantizer`, called by a
    pre-forward hook. Layers that read the image keep 8-bit inputs. Attentions of the copy are opened
    (`hawq.attention`), so that what enters their projections is quantised too.

    Args:
        model: the float network; left unchanged.
        blocks: of `model`, traced.
        plan: for these blocks.
        quantizer: makes the quantisers.

    Raises:
        ValueError: a plan of another model, a network that is quantised already, or a layer whose weight is computed.
    """
    check_plan_fits(blocks, plan)
    refuse_quantized(model)
    refuse_computed_weights(model, [name for block in blocks for name in block.layers])
    copied = copy.deepcopy(model)
    layers = dict(copied.named_modules())
    open_attention(copied)
    shared: dict[int, FakeQuantizer] = {}  # layers that share a weight share its quantiser
    weights = {name: weight_identity(layers[name]) for block in blocks for name in block.layers}
    for block in blocks:
        precision = plan.precisions[block.name]
        for name in block.layers:
            layer = layers[name]
            if precision.weight_bits < FLOAT_BITS:
                made = shared.setdefault(weights[name], weight_quantizer_for(layer, quantizer, precision.weight_bits))
                parametrize.register_parametrization(layer, weight_name(layer), made)
            if precision.activation_bits < FLOAT_BITS:
                bits = IMAGE_BITS if name in block.image_layers else precision.activation_bits
                attach_input_quantizer(layer, quantizer.activation(bits))
    copied.quantization = Quantization(tuple(blocks), plan)  # type: ignore[assignment]
    residual_bits = getattr(quantizer, "residuals", None)
    if residual_bits is not None:
        copied = add_residual_quantizers(copied, quantizer, residual_bits)
    device = next(model.parameters()).device
    return copied.to(device)


def check_plan_fits(blocks: Sequence[Block], plan: BitPlan) -> None:
    """Raises ValueError unless the plan's blocks are exactly the model's."""
    names = {block.name for block in blocks}
    unknown, missing = sorted(plan.precisions.keys() - names), sorted(names - plan.precisions.keys())
    if unknown or missing:
        raise ValueError(
            f"the plan is for another model: it lacks blocks {missing or 'none'} and names unknown blocks "
            f"{unknown or 'none'}; the model's blocks are {sorted(names)}"
        )


def refuse_quantized(model: nn.Module) -> None:
    """Raises UserError for a network that holds quantisers: a second one would act on top of the first."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantizer):
            layer = name.split(".parametrizations.")[0].removesuffix(f".{INPUT}")
            raise UserError(
                f"the network is quantised already ({layer} has {module.bits} bits): "
                "give the float network that it was made from"
            )


def weight_quantizer_for(layer: nn.Module, quantizer: Quantizer, bits: int) -> FakeQuantizer:
    """A new quantiser for the weight of `layer`, its scales along the axis of the layer's output channels."""
    made = quantizer.weight(bits)
    if made.channel_axis is not None:
        made.channel_axis = channel_axis(layer)
    return made


def attach_input_quantizer(layer: nn.Module, quantizer: FakeQuantizer) -> None:
    """Makes `quantizer` act on what enters `layer`, which becomes its owner as `layer.input_quantizer`."""
    setattr(layer, INPUT, quantizer)
    layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)


def weight_quantizer(layer: nn.Module) -> FakeQuantizer | None:
    """The quantiser of a layer's weight, or None where it has none of ours."""
    if not parametrize.is_parametrized(layer, weight_name(layer)):
        return None
    first = layer.parametrizations[weight_name(layer)][0]  # type: ignore[union-attr, index]
    return first if isinstance(first, FakeQuantizer) else None


def input_quantizer(layer: nn.Module) -> FakeQuantizer | None:
    """The quantiser of what enters a layer, or None."""
    found = getattr(layer, INPUT, None)
    return found if isinstance(found, FakeQuantizer) else None


def original_weight(layer: nn.Module) -> Tensor:
    """The float weight behind the quantiser of a layer, or the weight itself."""
    name = weight_name(layer)
    if not parametrize.is_parametrized(layer, name):
        return weight_of(layer)
    original: Tensor = layer.parametrizations[name].original  # type: ignore[union-attr, index, assignment]
    return original


def _quantize_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    return map_inputs(layer, args, kwargs, layer.input_quantizer)  # type: ignore[arg-type]
