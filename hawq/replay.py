"""Forward passes that begin in the middle: what comes before a changed layer is remembered, not computed again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hawq.call_graph import CallGraph, Handler, Key, intercepted, record_calls
from hawq.modes import analysis_mode
from hawq.structures import map_tensors, tensors_in

_LOG = logging.getLogger(__name__)
Memory = dict[Key, Any]
"""What the skipped calls returned for one batch; empty for a batch that is computed from the start."""


class _AtTheCut(BaseException):
    """Ends a forward pass where the first layer that changes is called. No network takes it for an error of its own."""


def prefixes(model: nn.Module, groups: Mapping[str, Collection[str]], example: Tensor) -> dict[str, Prefix]:
    """For each group of layers that change together (by its name) what comes before it; `example` is (N, ...)."""
    try:
        graph = record_calls(model, example)
    except Exception as error:  # a module may not let its forward be replaced (TorchScript)
        _LOG.debug("no part of the network is skipped: %s", error)
        graph = CallGraph()
    cuts = {name: graph.first_use(model, layers) for name, layers in groups.items()}
    found, former = dict[str, Prefix](), None
    for name in sorted(groups, key=lambda name: cuts[name]):
        found[name] = Prefix(model, groups[name], cuts[name], graph)
        former = found[name].try_out(example, former) or former
    return {name: found[name] for name in groups}


class Prefix:
    """What a network in eval mode computes before the first call of some layers, while only these layers change.

    Modules whose calls have ended by then need not run: they return what they returned for the same batch before. Only
    what is read later on is kept, as the graph of one small pass shows; the others return memory that nobody reads.
    All of this is tried out on the example with changed weights. Where it does not hold (a weight that is used without
    a call of its layer, say), nothing is skipped.

    Args:
        model: changed by its layers' weights, inputs and batch statistics alone.
        layers: qualified names of the layers that change.
        cut: when the first of the layers is called, by the clock of `graph`; 0 where that is not seen.
        graph: of the model.
    """

    def __init__(self, model: nn.Module, layers: Collection[str], cut: int, graph: CallGraph) -> None:
        self._model, self._layers, self.cut = model, layers, cut
        self._first = {call.key[0] for call in graph.calls if call.began == cut}
        self._skipped = graph.ended_by(cut)
        self._needed = graph.read_after(self._skipped)

    def try_out(self, example: Tensor, earlier: tuple[Prefix, Memory] | None = None) -> tuple[Prefix, Memory] | None:
        """This prefix and its memory for `example` (N, ...), where all of the above holds; else nothing is skipped."""
        if not self._skipped:
            return None
        try:
            memory = self._proven(example, earlier)
        except Exception as error:  # a network may do anything between its modules
            _LOG.debug("no part of the network is skipped before %s: %s", sorted(self._layers)[:1], error)
            memory = None
        if memory is None:
            self.cut, self._skipped, self._needed = 0, frozenset(), frozenset()
            return None
        return self, memory

    @property
    def skips(self) -> bool:
        """Whether anything is not computed again."""
        return bool(self._skipped)

    def bytes_of(self, memory: Memory) -> int:
        """Bytes that are kept for one batch."""
        return sum(tensor.untyped_storage().nbytes() for output in memory.values() for tensor in tensors_in(output))

    def remember(self, inputs: Tensor, earlier: tuple[Prefix, Memory] | None = None) -> Memory:
        """Runs the unchanged network up to the cut and keeps what `run` needs for these inputs (N, ...).

        Args:
            inputs: of the network, in the mode that it is in.
            earlier: another prefix, and its memory for the same inputs; if its cut is no later, the run begins there.
        """
        if earlier and earlier[0].cut > self.cut:
            earlier = None
        if not self._skipped:
            return {}
        memory: Memory = {}

        def keep(name: str) -> Handler:
            def call(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                key = (name, index)
                if earlier and key in earlier[1]:
                    output = earlier[0]._given(key, earlier[1], _unread)
                else:
                    output = forward(*args, **kwargs)
                if key in self._skipped:
                    memory[key] = map_tensors(Tensor.clone if key in self._needed else _shape_of, output)
                return output

            return call

        def stop(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            raise _AtTheCut

        names = {name for name, _ in self._skipped | (set(earlier[1]) if earlier else set())}
        handlers = {name: keep(name) for name in names} | dict.fromkeys(self._first, stop)
        with intercepted(self._model, handlers), suppress(_AtTheCut):
            self._model(inputs.clone())  # a network may change its input in place
        return memory if memory.keys() == self._skipped else {}  # another path than that of the example

    def run(self, inputs: Tensor, memory: Memory) -> Any:
        """The network's outputs for inputs (N, ...), from the cut on; from the start where nothing is remembered."""
        return self._run(inputs, memory, _unread)

    def _run(self, inputs: Tensor, memory: Memory, absent: Callable[[Tensor], Tensor]) -> Any:
        """`run`, with `absent` in place of what was not kept."""

        def recall(name: str) -> Handler:
            def call(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                key = (name, index)
                return self._given(key, memory, absent) if key in memory else forward(*args, **kwargs)

            return call

        with intercepted(self._model, {name: recall(name) for name in {name for name, _ in memory}}):
            return self._model(inputs.clone())

    def _given(self, key: Key, memory: Memory, absent: Callable[[Tensor], Tensor]) -> Any:
        """What a skipped call returns: its own copy of what it returned before, or what nobody reads."""
        return map_tensors(Tensor.clone if key in self._needed else absent, memory[key])

    @torch.no_grad()
    def _proven(self, example: Tensor, earlier: tuple[Prefix, Memory] | None) -> Memory | None:
        """What is remembered of `example`, if a run from the cut on gives the outputs of a whole one when the layers'
        weights are others and what is not needed is NaN.
        """
        weights = {id(p): p for name in self._layers for p in self._model.get_submodule(name).parameters()}
        with analysis_mode(self._model, []), torch.no_grad():
            memory = self.remember(example, earlier)
            if not memory:
                return None
            kept = {key: weight.clone() for key, weight in weights.items()}
            try:
                for weight in weights.values():
                    weight.mul_(1.25)
                whole, short = self._model(example), self._run(example, memory, _poison)
            finally:
                for key, weight in weights.items():
                    weight.copy_(kept[key])
        pairs = zip(tensors_in(whole), tensors_in(short), strict=True)
        holds = all(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6) for a, b in pairs)
        return memory if holds else None


def _shape_of(tensor: Tensor) -> Tensor:
    """One number in the shape of a tensor."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _unread(tensor: Tensor) -> Tensor:
    """Memory in the shape of a tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _poison(tensor: Tensor) -> Tensor:
    """NaN in the shape of a tensor; zeros where it cannot be."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0)
