"""One block of a network quantised alone, everything else float: what comes out, with forward passes alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import open_attention, opened_attention
from hawq.blocks import block_layers
from hawq.errors import UserError
from hawq.layers import Arguments, map_inputs, weight_of
from hawq.modes import full_precision
from hawq.quantization import LSQ, CarriedBatchNorm, InputSample, Quantizer, observe_inputs, quantized_weight
from hawq.records import IMAGE_BITS, WEIGHTS, Block
from hawq.replay import Memory, Prefix, prefixes

_LOG = logging.getLogger(__name__)
_FEW = 2  # images that the way through the network is looked at with
_BYTES_KEPT = 2**31  # of what precedes a block, for all images together


class SingleBlocks:
    """Quantises the weights, or the input activations, of one block at a time, and runs the network on fixed images.

    The results are those of `hawq.quantize` with a plan that leaves all other blocks float. What comes before the block
    is computed once per block, not once per bit-width (`hawq.replay`), also where batch norm is carried. Additions that
    `quantizer.residuals` would quantise stay float.

    Args:
        model: the float network; left unchanged, a copy of it does the work.
        blocks: from `find_blocks`, traced.
        batches: inputs (N, ...) on the model's device; those that `run` gives the outputs of.
        calibration: inputs (N, ...) that batch norm's statistics and the ranges of activations are taken from.
        quantizer: LSQ unless given.
        carry_batch_norm: see `hawq.quantize`.
        reuse: whether what comes before a block is remembered.
        bytes_kept: most memory for that; a block that needs more is run from the start.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        batches: Sequence[Tensor],
        calibration: Sequence[Tensor],
        quantizer: Quantizer | None = None,
        *,
        carry_batch_norm: bool = True,
        reuse: bool = True,
        bytes_kept: float = _BYTES_KEPT,
    ) -> None:
        self._blocks, self._quantizer = {block.name: block for block in blocks}, quantizer or LSQ()
        self._batches, self._calibration = list(batches), list(calibration)
        self._network = copy.deepcopy(model).eval()
        open_attention(self._network)
        self._bytes_kept, self._samples = bytes_kept, dict[str, InputSample]()
        self._prefixes: dict[str, Prefix] = {}
        self._at: str | None = None
        self._images: list[Memory] = []
        self._statistics: list[Memory] = []
        with self._quietly():
            self._carried = CarriedBatchNorm(self._network, self._calibration if carry_batch_norm else [])
            groups = {block.name: block.layers for block in blocks} if reuse and self._batches else {}
            if groups:
                self._prefixes = prefixes(self._network, groups, self._batches[0][:_FEW])

    def run(self) -> Iterator[Any]:
        """The outputs of the network as it is now, batch by batch: of the float one unless `quantized` is active."""
        for place, inputs in enumerate(self._batches):
            with self._quietly():
                outputs = self._forward(inputs, self._images[place] if self._images else {})
            yield outputs

    @contextmanager
    def quantized(self, name: str, kind: str, bits: int) -> Iterator[None]:
        """While active, one block's weights or input activations (`kind`) have `bits`, with batch norm carried.

        Raises UserError where what enters a layer of the block is not finite.
        """
        block = self._blocks[name]
        with ExitStack() as undo:
            with self._quietly():
                self._begin(name)
                undo.callback(self._carried.undo)
                undo.enter_context(self._weights(block, bits) if kind == WEIGHTS else self._inputs(block, bits))
                self._carried.follow(self._forward_statistics)
            yield

    def leave(self) -> None:
        """Forgets what precedes the block that was quantised last; `run` then begins at the start."""
        self._at, self._images, self._statistics = None, [], []

    def _begin(self, name: str) -> None:
        """Remembers what precedes a block, starting from what precedes the former one where that comes earlier."""
        if self._at == name or name not in self._prefixes:
            return
        prefix, former = self._prefixes[name], self._prefixes.get(self._at or "")

        def remember(place: int, inputs: Tensor, known: Sequence[Memory]) -> Memory:
            return prefix.remember(inputs, (former, known[place]) if former is not None and known else None)

        statistics: list[Memory] = []
        self._carried.observe(lambda place, inputs: statistics.append(remember(place, inputs, self._statistics)))
        self._images = [remember(place, inputs, self._images) for place, inputs in enumerate(self._batches)]
        self._statistics, self._at = statistics, name
        if sum(map(prefix.bytes_of, [*self._images, *self._statistics])) > self._bytes_kept:
            _LOG.info("what precedes block %s takes too much memory to be kept: it is computed again", name)
            self._images, self._statistics = [{} for _ in self._images], [{} for _ in self._statistics]

    def _forward(self, inputs: Tensor, memory: Memory) -> Any:
        prefix = self._prefixes.get(self._at or "")
        return self._network(inputs.clone()) if prefix is None else prefix.run(inputs, memory)

    def _forward_statistics(self, place: int, inputs: Tensor) -> None:
        self._forward(inputs, self._statistics[place] if self._statistics else {})

    @contextmanager
    def _weights(self, block: Block, bits: int) -> Iterator[None]:
        """The block's weights on their grids; put back bit for bit."""
        layers = block_layers(self._network, block)
        kept = [weight_of(layer).detach().clone() for layer in layers]
        try:
            for layer in layers:
                weight_of(layer).detach().copy_(quantized_weight(layer, self._quantizer, bits))
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                weight_of(layer).detach().copy_(weight)

    @contextmanager
    def _inputs(self, block: Block, bits: int) -> Iterator[None]:
        """Quantisers on what enters the block's layers; those that read the image keep 8 bits."""
        modules, handles = dict(self._network.named_modules()), []
        try:
            for name in block.layers:
                sample = self._observed(name, modules)
                if sample is not None:
                    made = self._quantizer.activation(IMAGE_BITS if name in block.image_layers else bits)
                    values = sample.values_and_extremes()
                    made.to(values.device).initialise(values)
                    handles.append(modules[name].register_forward_pre_hook(_quantizing(made), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _observed(self, name: str, modules: dict[str, nn.Module]) -> InputSample | None:
        """What enters a layer of the float network on the calibration inputs; None where it is never called."""
        if not self._samples:
            if not self._calibration:
                raise UserError("activations cannot be quantised without calibration inputs: give calibration=[inputs]")
            layers = {layer: modules[layer] for block in self._blocks.values() for layer in block.layers}
            self._samples = observe_inputs(self._network, layers, self._calibration)
        return self._samples.get(name)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Without gradients, in full float32, with attentions open."""
        device = next(self._network.parameters()).device
        with torch.no_grad(), full_precision(device), opened_attention(self._network):
            yield


def _quantizing(quantizer: nn.Module) -> Callable[..., Arguments]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return map_inputs(layer, args, kwargs, quantizer)

    return hook
