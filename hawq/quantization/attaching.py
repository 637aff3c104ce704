"""Quantisers on the layers of any `nn.Module`: no subclassing, the float network untouched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.quantization.fake_quantize import FakeQuantizer
from hawq.quantization.residuals import add_residual_quantizers
from hawq.records import FLOAT_BITS, IMAGE_BITS, BitPlan, Block


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


def attach_input_quantizer(layer: nn.Module, quantizer: FakeQuantizer) -> None:
    """Makes `quantizer` act on the first input of `layer`, which becomes its owner as `layer.input_quantizer`."""
    layer.input_quantizer = quantizer
    layer.register_forward_pre_hook(_quantize_input)


def weight_quantizer(layer: nn.Module) -> FakeQuantizer | None:
    """The quantiser of a layer's weight, or None where it has none of ours."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    first = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    return first if isinstance(first, FakeQuantizer) else None


def _quantize_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (layer.input_quantizer(inputs[0]), *inputs[1:])  # type: ignore[operator]
