"""A quantised copy of a network at each bit-width; all copies share their float weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hawq.blocks import block_layers
from hawq.costs import plan_cost
from hawq.curvature import Loss
from hawq.distributed import broadcast_parameters
from hawq.modes import full_precision
from hawq.quantization import FakeQuantizer, Quantizer, batch_statistics, input_quantizer, quantize, weight_quantizer
from hawq.records import ACTIVATIONS, FLOAT_BITS, WEIGHTS, BitPlan, Block, Precision
from hawq.scoring.work import Place

_FEWEST_BITS = 2  # that move the shared weights: the paper's; the gradient at one bit would drown all others


class JointNetworks:
    """A quantised copy of a network at each bit-width; all copies share their float weights.

    Each copy has its own quantisers and its own batch norms, with statistics carried as `hawq.quantize` does. It stays
    in eval mode, so that every image counts by itself, however images are cut into batches.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        bit_widths: each is that of all blocks in one copy.
        calibration: inputs (N, ...), the same on every process.
        quantizer: with trained steps.
        activations: whether the blocks' input activations have these bits as well.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        bit_widths: Sequence[int],
        calibration: Sequence[Tensor],
        quantizer: Quantizer,
        *,
        activations: bool,
    ) -> None:
        if getattr(quantizer, "residuals", None) is not None:
            quantizer = replace(quantizer, residuals=None)  # type: ignore[type-var]
        self._blocks, self._networks = tuple(blocks), dict[int, nn.Module]()
        statistics = batch_statistics(model, calibration)
        for bits in bit_widths:
            precisions = {block.name: Precision(bits, bits if activations else FLOAT_BITS) for block in blocks}
            plan = BitPlan(precisions, "joint", plan_cost(blocks, precisions))
            made = quantize(model, blocks, plan, calibration, quantizer, statistics=statistics).eval()
            broadcast_parameters(made)
            self._networks[bits] = _sharing(made, next(iter(self._networks.values()), made))
        first = self._networks[bit_widths[0]]
        scales = {bits: _parameters_of(network, FakeQuantizer) for bits, network in self._networks.items()}
        norms = {bits: _parameters_of(network, _BatchNorm) for bits, network in self._networks.items()}
        own = {id(parameter) for parameter in (*scales[bit_widths[0]], *norms[bit_widths[0]])}
        shared = [p for p in first.parameters() if p.is_floating_point() and id(p) not in own]
        self.trained: dict[int, list[nn.Parameter]] = {
            bits: [*(shared if bits >= _FEWEST_BITS else []), *scales[bits], *norms[bits]] for bits in bit_widths
        }
        """Bit-width → what its pass gives gradients to."""
        self.scales = [scale for own in scales.values() for scale in own]
        """The steps of all bit-widths."""
        self.groups = [shared, *norms.values()]
        """The float weights, and the batch norms of each bit-width."""
        self.parameters: list[nn.Parameter] = [*self.scales, *(p for group in self.groups for p in group)]
        """All that is trained, none twice."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def gradient(self, bits: int, batches: Sequence[tuple[Tensor, Tensor]], loss: Loss, count: int) -> list[Tensor]:
        """The loss (1,), then ∂L/∂p of each p in `trained[bits]`: Σ over the samples given, over `count`.

        Args:
            bits: of the copy that is run.
            batches: (inputs (N, ...), targets) pairs.
            loss: mean loss over a batch.
            count: samples of all batches of all processes.
        """
        network, trained = self._networks[bits], self.trained[bits]
        totals = [trained[0].new_zeros(1), *map(torch.zeros_like, trained)]
        for inputs, targets in batches:
            with torch.enable_grad(), full_precision(inputs.device):
                value = loss(network(inputs.clone()), targets) * (len(inputs) / count)
                totals[0] += value.detach()
                if value.requires_grad:
                    found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
                    for total, one in zip(totals[1:], found, strict=True):
                        total += one
        return totals

    def steps(self) -> dict[Place, float]:
        """The present steps of each block: Σ over its layers of the mean |s| over a layer's channels.

        Weights that layers share count once. Inputs count unless they are the image or nothing ever entered.
        """
        found: dict[Place, float] = {}
        for bits, network in self._networks.items():
            layers = dict(network.named_modules())
            for block in self._blocks:
                grids = [weight_quantizer(layer) for layer in block_layers(network, block)]
                inputs = [input_quantizer(layers[name]) for name in block.layers if name not in block.image_layers]
                found[block.name, WEIGHTS, bits] = _total(grids)
                if block.num_activations:
                    found[block.name, ACTIVATIONS, bits] = _total(inputs)
        return found


def _sharing(network: nn.Module, other: nn.Module) -> nn.Module:
    """`network` with the parameters of `other`, a copy of the same one, except in quantisers and batch norms."""
    others = dict(other.named_modules())
    for path, module in network.named_modules():
        if not isinstance(module, (FakeQuantizer, _BatchNorm)):
            for name, _ in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(module, name, getattr(others[path], name))
    return network


def _parameters_of(network: nn.Module, kind: type[nn.Module]) -> list[nn.Parameter]:
    """The parameters of all modules of one class."""
    owners = [module for module in network.modules() if isinstance(module, kind)]
    return list({id(p): p for owner in owners for p in owner.parameters() if p.is_floating_point()}.values())


def _total(grids: Sequence[FakeQuantizer | None]) -> float:
    """Σ of the mean step of each quantiser that is on, none counted twice."""
    used = {id(grid): grid for grid in grids if grid is not None and grid.enabled}.values()
    return sum(float(grid.get_parameter("scale").detach().abs().double().mean()) for grid in used)
