"""ModelOpt's score: how far quantisation shifts the outputs of a block's layers, weighed by the squared gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hawq.attention import with_open_attention
from hawq.curvature import Batch, BlockOperator, Loss
from hawq.distributed import all_reduce
from hawq.layers import map_inputs, weight_name
from hawq.modes import eval_mode, full_precision
from hawq.quantization import LSQ, FakeQuantizer, InputSample, QuantizedWeights, Quantizer, observe_inputs
from hawq.records import BIT_WIDTHS, WEIGHTS, Block, ScoreTable
from hawq.scoring.work import Conditions, Ledger, Place, block_operator, parts_of, places, told
from hawq.structures import main_output, map_tensors


@dataclass(frozen=True)
class _Called:
    """One call of a layer: its arguments, its output Y, and a zero added to Y that the loss is differentiated by."""

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    shift: Tensor


@with_open_attention
def output_shift_score(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    calibration: Sequence[Tensor],
    quantizer: Quantizer | None = None,
    *,
    activations: bool = False,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    conditions: Conditions | None = None,
) -> ScoreTable:
    """Ω_i(b) = mean over samples of Σ g² · ΔY², as AutoQuantize of NVIDIA's ModelOpt scores a layer's formats.

    Y are the outputs of the block's layers, g = ∂ℓ/∂Y of the sample's own loss, and ΔY what quantising the layer's
    weight (or its input) does to Y. One backward pass serves all blocks and bit-widths. Errors are standard errors over
    the samples.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        batches: fixed (inputs, targets) pairs, in a group of processes those of this one.
        loss: mean loss over a batch.
        calibration: inputs (N, ...) that the ranges of activations are chosen from, the same everywhere.
        quantizer: LSQ unless given.
        activations: whether the inputs of the layers (the image excepted) are quantised alone as well.
        bit_widths: to measure.
        conditions: checkpoint, memory limit, progress.

    Raises:
        ValueError: as `BlockOperator` does.
    """
    conditions, quantizer = conditions or Conditions(), quantizer or LSQ()
    operator = block_operator("ggn", model, blocks, batches, loss, conditions.memory_limit_gib)
    modules = dict(model.named_modules())
    layers = {name: modules[name] for block in blocks for name in block.layers}
    counted = {name: layer for b in blocks for name, layer in layers.items() if name not in b.image_layers}
    samples = observe_inputs(model, counted, calibration) if activations else {}
    ledger, wanted = Ledger(conditions), places(blocks, bit_widths, activations=activations)
    parts, _ = parts_of(operator)
    done = min((len(ledger.values.get(place, ())) // 2 for place in wanted), default=0)
    changes, pass_seconds = _Changes(layers, quantizer, samples), 0.0
    with told(conditions, "output_shift", len(parts), done) as task:
        for own in parts[done:]:
            part = operator.of_samples(own, seen=operator.seen)
            totals = part.until_it_fits(lambda part=part: changes.totals(part, blocks, wanted))  # type: ignore[misc]
            all_reduce([totals])
            for place, sums in zip(wanted, totals.tolist(), strict=True):
                ledger.values.setdefault(place, []).extend(sums)
            pass_seconds += changes.pass_seconds
            task.advance(1)
            ledger.save()
    count = operator.num_samples
    predicted = {place: _summary(ledger.values[place], count) for place in wanted}
    gradient = pass_seconds * len(parts) / max(len(parts) - done, 1)
    return ledger.table("output_shift", predicted, gradient, count)


class _Changes:
    """Σ g² · ΔY² of each sample, for all layers; a range is chosen once for each layer and bit-width."""

    def __init__(
        self, layers: Mapping[str, nn.Module], quantizer: Quantizer, samples: Mapping[str, InputSample]
    ) -> None:
        self._layers, self._quantizer, self._samples = layers, quantizer, samples
        self._weights, self._inputs = QuantizedWeights(quantizer), dict[tuple[str, int], FakeQuantizer]()
        self.pass_seconds = 0.0

    def totals(self, operator: BlockOperator, blocks: Sequence[Block], wanted: Sequence[Place]) -> Tensor:
        """(places, 2): Σ over this process' samples of the sample's value, and of its square; float64."""
        self.pass_seconds = 0.0
        layers_of = {block.name: block.layers for block in blocks}
        totals = torch.zeros(len(wanted), 2, dtype=torch.float64, device=operator.device)
        for batch, _ in operator.samples.weighted():
            calls = self._calls(operator, batch)
            for place, (name, kind, bits) in enumerate(wanted):
                each = torch.zeros(len(batch[0]), dtype=torch.float64, device=totals.device)
                for call, slope in calls:
                    if call.layer in layers_of[name]:
                        each += self._values(call, slope, kind, bits, len(each))
                totals[place] += torch.stack([each.sum(), each.square().sum()])
        return totals

    def _calls(self, operator: BlockOperator, batch: Batch) -> list[tuple[_Called, Tensor]]:
        """Every call of a layer in one forward pass, with g of each sample's own loss."""
        began = time.perf_counter()
        with operator.analysis(), _recorded(self._layers) as calls:
            value = len(batch[0]) * operator.loss(operator.model(batch[0]), batch[1])
            shifts = [call.shift for call in calls]
            slopes = torch.autograd.grad(value, shifts, allow_unused=True, materialize_grads=True)
        self.pass_seconds += time.perf_counter() - began
        return list(zip(calls, slopes, strict=True))

    @torch.no_grad()
    def _values(self, call: _Called, slope: Tensor, kind: str, bits: int, count: int) -> Tensor:
        """Σ g² · ΔY² of each sample (N,), float64; what cannot be told apart by samples is shared out evenly."""
        layer, args, kwargs, changed = self._layers[call.layer], call.args, call.kwargs, {}
        if kind == WEIGHTS:
            changed = {weight_name(layer): self._weights(layer, bits)}
        elif call.layer in self._samples:
            args, kwargs = map_inputs(layer, args, kwargs, self._input_quantizer(call.layer, bits))
        else:
            return slope.new_zeros(count, dtype=torch.float64)
        with eval_mode(layer), full_precision(slope.device):
            output = main_output(functional_call(layer, changed, args, kwargs))
        each = (slope * (output - call.output)).double().square().reshape(-1)
        return each.view(count, -1).sum(1) if len(each) % count == 0 else (each.sum() / count).expand(count)

    def _input_quantizer(self, layer: str, bits: int) -> FakeQuantizer:
        """For what enters a layer, its range chosen from the layer's sample."""
        if (layer, bits) not in self._inputs:
            values = self._samples[layer].values_and_extremes()
            made = self._inputs[layer, bits] = self._quantizer.activation(bits).to(values.device)
            made.initialise(values)
        return self._inputs[layer, bits]


def _summary(sums: Sequence[float], count: int) -> tuple[float, float]:
    """Mean and standard error from Σ v, Σ v² of one part of the samples after the other."""
    total, squares = sum(sums[0::2]), sum(sums[1::2])
    variance = max(squares - total**2 / count, 0.0) / max(count - 1, 1)
    return total / count, math.sqrt(variance / count)


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[list[_Called]]:
    """Every call of the layers while active, in order."""
    calls: list[_Called] = []

    def recorder(name: str) -> Callable[..., Any]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            first = main_output(output)
            shift = torch.zeros_like(first, requires_grad=True)
            kept, named = (map_tensors(Tensor.detach, value) for value in (args, kwargs))
            calls.append(_Called(name, kept, named, first.detach(), shift))
            return map_tensors(lambda one: one + shift if one is first else one, output)

        return record

    handles = [layer.register_forward_hook(recorder(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
