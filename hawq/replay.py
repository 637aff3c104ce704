"""Forward passes that begin in the middle: what comes before a changed layer is remembered, not computed again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hawq.modes import analysis_mode
from hawq.structures import map_tensors, tensors_in

_LOG = logging.getLogger(__name__)
Key = tuple[str, int]  # name of a module, and which of its calls in one forward pass
Memory = dict[Key, Any]
"""What the skipped calls returned for one batch; empty for a batch that is computed from the start."""

Handler = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _AtTheCut(BaseException):
    """Ends a forward pass where the first layer that changes is called. No network takes it for an error of its own."""


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass: when it began and ended, counted in such events."""

    key: Key
    began: int
    ended: int


def record_calls(model: nn.Module, example: Tensor) -> list[Call]:
    """Every call of a submodule in one forward pass on `example` (N, ...), by the time at which it began."""
    clock, open_calls, seen = Counter[str](), list[tuple[Key, int]](), list[Call]()

    def note(name: str) -> Handler:
        def call(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            clock["events"] += 1
            open_calls.append(((name, index), clock["events"]))
            output = forward(*args, **kwargs)
            clock["events"] += 1
            key, began = open_calls.pop()
            seen.append(Call(key, began, clock["events"]))
            return output

        return call

    handlers = {name: note(name) for name, _ in model.named_modules() if name}
    with analysis_mode(model, []), torch.no_grad(), _intercepted(model, handlers):
        model(example)
    return sorted(seen, key=lambda call: call.began)


def prefixes(model: nn.Module, groups: Mapping[str, Collection[str]], example: Tensor) -> dict[str, Prefix]:
    """For each group of layers that change together (by its name) what comes before it; `example` is (N, ...)."""
    try:
        calls = record_calls(model, example)
    except Exception as error:  # a module may not let its forward be replaced (TorchScript)
        _LOG.debug("no part of the network is skipped: %s", error)
        calls = []
    return {name: Prefix(model, layers, example, calls) for name, layers in groups.items()}


class Prefix:
    """What a network in eval mode computes before the first call of some layers, while only these layers change.

    Modules whose calls have ended by then need not run: they return what they returned for the same batch before. Only
    what is read later on is kept, as the graph of one small pass shows; the others return memory that nobody reads.
    All of this is tried out on the example with changed weights. Where it does not hold (a weight that is used without
    a call of its layer, say), nothing is skipped.

    Args:
        model: changed by its layers' weights, inputs and batch statistics alone.
        layers: qualified names of the layers that change.
        example: a few inputs (N, ...).
        calls: of the model on the example, from `record_calls`.
    """

    def __init__(self, model: nn.Module, layers: Collection[str], example: Tensor, calls: list[Call]) -> None:
        self._model = model
        self.cut = _first_use(model, layers, calls)
        """When the first of the layers is called; 0 where that is not seen."""
        self._first = {call.key[0] for call in calls if call.began == self.cut}
        self._skipped = _ended_by(self.cut, calls)
        self._needed: frozenset[Key] = frozenset()
        if self._skipped:
            try:
                self._needed = self._find_needed(example)
                works = self._holds(example, layers)
            except Exception as error:  # a network may do anything between its modules
                _LOG.debug("no part of the network is skipped before %s: %s", sorted(layers)[:1], error)
                works = False
            if not works:
                self.cut, self._skipped, self._needed = 0, frozenset(), frozenset()

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
        with _intercepted(self._model, handlers), suppress(_AtTheCut):
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

        with _intercepted(self._model, {name: recall(name) for name in {name for name, _ in memory}}):
            return self._model(inputs.clone())

    def _given(self, key: Key, memory: Memory, absent: Callable[[Tensor], Tensor]) -> Any:
        """What a skipped call returns: its own copy of what it returned before, or what nobody reads."""
        return map_tensors(Tensor.clone if key in self._needed else absent, memory[key])

    def _find_needed(self, example: Tensor) -> frozenset[Key]:
        """The skipped calls whose outputs are read after the cut: those that the outputs have a gradient by."""
        leaves: list[tuple[Key, Tensor]] = []
        opaque: set[Key] = set()  # returned something that has no gradient

        def leaf(key: Key, output: Tensor) -> Tensor:
            if not output.is_floating_point():
                opaque.add(key)
                return output
            leaves.append((key, output.detach().requires_grad_()))
            return leaves[-1][1].clone()  # which may be changed in place

        def follow(name: str) -> Handler:
            def call(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                key = (name, index)
                if key not in self._skipped:
                    return forward(*args, **kwargs)
                with torch.no_grad():
                    output = forward(*args, **kwargs)
                return map_tensors(lambda one: leaf(key, one), output)

            return call

        names = {name for name, _ in self._skipped}
        with analysis_mode(self._model, []), _intercepted(self._model, {name: follow(name) for name in names}):
            outputs = [one for one in tensors_in(self._model(example)) if one.requires_grad]
            grads = torch.autograd.grad([one.sum() for one in outputs], [one for _, one in leaves], allow_unused=True)
        reached = {key for (key, _), grad in zip(leaves, grads, strict=True) if grad is not None}
        return frozenset(reached | opaque)

    @torch.no_grad()
    def _holds(self, example: Tensor, layers: Collection[str]) -> bool:
        """Whether a run from the cut on gives the outputs of a whole one, when the layers' weights are others and what
        is not needed is NaN.
        """
        modules = dict(self._model.named_modules())
        weights = {id(p): p for name in layers for p in modules[name].parameters()}
        with analysis_mode(self._model, []), torch.no_grad():
            memory = self.remember(example)
            if not memory:
                return False
            kept = {key: weight.clone() for key, weight in weights.items()}
            try:
                for weight in weights.values():
                    weight.mul_(1.25)
                whole, short = self._model(example), self._run(example, memory, _poison)
            finally:
                for key, weight in weights.items():
                    weight.copy_(kept[key])
        pairs = zip(tensors_in(whole), tensors_in(short), strict=True)
        return all(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6) for a, b in pairs)


def _first_use(model: nn.Module, layers: Collection[str], calls: list[Call]) -> int:
    """When a layer, what lies in it, or another one that shares its parameters, is first called; 0 where one is not.

    What lies in a layer may be called before it: a quantiser of its inputs, by a hook.
    """
    modules = dict(model.named_modules())
    inside = {call.key[0] for call in calls if call.key[0].startswith(tuple(f"{name}." for name in layers))}
    changed = {*layers, *inside}
    own = {id(parameter) for name in changed for parameter in modules[name].parameters(recurse=False)}
    users = {name for name, m in modules.items() if own & {id(p) for p in m.parameters(recurse=False)}} | changed
    began = {name: min((c.began for c in calls if c.key[0] == name), default=0) for name in users}
    return min(began.values(), default=0)


def _ended_by(cut: int, calls: list[Call]) -> frozenset[Key]:
    """The outermost calls that have ended by then."""
    ended, outermost, covered = [call for call in calls if call.ended < cut], set[Key](), 0
    for call in ended:  # by the time they began: one inside another comes after it
        if call.began > covered:
            outermost.add(call.key)
            covered = call.ended
    return frozenset(outermost)


def _shape_of(tensor: Tensor) -> Tensor:
    """One number in the shape of a tensor."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _unread(tensor: Tensor) -> Tensor:
    """Memory in the shape of a tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _poison(tensor: Tensor) -> Tensor:
    """NaN in the shape of a tensor; zeros where it cannot be."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0)


@contextmanager
def _intercepted(model: nn.Module, handlers: Mapping[str, Handler]) -> Iterator[None]:
    """While active, a handler stands in for the forward of each named module and is told which of its calls it is."""
    modules = dict(model.named_modules())
    counts, own = Counter[str](), {name: vars(modules[name]).get("forward") for name in handlers}

    def stand_in(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            index = counts[name]
            counts[name] += 1
            return handlers[name](index, forward, args, kwargs)

        return call

    replaced = []
    try:
        for name in handlers:
            modules[name].forward = stand_in(name, modules[name].forward)
            replaced.append(name)
        yield
    finally:
        for name in replaced:
            if own[name] is None:
                del modules[name].forward
            else:
                modules[name].forward = own[name]
