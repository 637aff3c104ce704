"""The calls of a network's modules in one forward pass: when each began and ended, and what is read of it later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hawq.modes import analysis_mode
from hawq.structures import map_tensors, tensors_in

Key = tuple[str, int]  # name of a module, and which of its calls in one forward pass
Handler = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass: when it began and ended, counted in such events."""

    key: Key
    began: int
    ended: int


@dataclass(frozen=True)
class _Node:
    """One operation: the call whose output it is, if any, and the operations whose results it reads."""

    key: Key | None
    reads: list[int]


@dataclass
class CallGraph:
    """One forward pass of a network, from `record_calls`.

    Args:
        calls: of every submodule, by the time at which they began; empty where they cannot be seen.
        users: id of a parameter → names of the modules that hold it.
    """

    calls: list[Call] = field(default_factory=list)
    users: dict[int, set[str]] = field(default_factory=dict)
    _nodes: list[_Node] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _opaque: set[Key] = field(default_factory=set)

    def first_use(self, model: nn.Module, layers: Collection[str]) -> int:
        """When a layer, what lies in it, or one that shares its parameters, is first called; 0 where one never is.

        What lies in a layer may be called before it: a quantiser of its inputs, by a hook.
        """
        inside = {call.key[0] for call in self.calls if call.key[0].startswith(tuple(f"{name}." for name in layers))}
        changed = {*layers, *inside}
        own = [id(p) for name in changed for p in model.get_submodule(name).parameters(recurse=False)]
        users = changed.union(*(self.users.get(one, set()) for one in own))
        began: dict[str, int] = {}
        for call in self.calls:
            if call.key[0] in users:
                began.setdefault(call.key[0], call.began)
        return min((began.get(name, 0) for name in users), default=0)

    def ended_by(self, cut: int) -> frozenset[Key]:
        """The outermost calls that have ended by then."""
        outermost, covered = set[Key](), 0
        for call in self.calls:  # by the time they began: one inside another comes after it
            if covered < call.began and call.ended < cut:
                outermost.add(call.key)
                covered = call.ended
        return frozenset(outermost)

    def read_after(self, ended: Collection[Key]) -> frozenset[Key]:
        """Of calls that have ended those whose outputs are read by what comes after them all, up to the outputs.

        A call that returned something without a gradient (indices, say) counts as read.
        """
        found, seen, waiting = {key for key in ended if key in self._opaque}, set(self._ends), list(self._ends)
        while waiting:
            node = self._nodes[waiting.pop()]
            if node.key in ended:
                found.add(node.key)  # type: ignore[arg-type]
                continue
            new = [place for place in node.reads if place not in seen]
            seen.update(new)
            waiting += new
        return frozenset(found)


def record_calls(model: nn.Module, example: Tensor) -> CallGraph:
    """Every call of a submodule in one forward pass on `example` (N, ...), and which operations read what it returned.

    Each output passes through an operation of its own, by which the graph that PyTorch keeps for gradients is marked.
    """
    graph, marks = CallGraph(), dict[Any, Key]()
    clock, open_calls = Counter[str](), list[tuple[Key, int]]()

    def marked(key: Key, output: Tensor) -> Tensor:
        if not output.is_floating_point():
            graph._opaque.add(key)
            return output
        copied = (output if output.requires_grad else output.detach().requires_grad_()).clone()
        marks[copied.grad_fn] = key
        return copied

    def note(name: str) -> Handler:
        def call(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            clock["events"] += 1
            open_calls.append(((name, index), clock["events"]))
            output = forward(*args, **kwargs)
            clock["events"] += 1
            key, began = open_calls.pop()
            graph.calls.append(Call(key, began, clock["events"]))
            return map_tensors(lambda one: marked(key, one), output)

        return call

    modules = dict(model.named_modules())
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            graph.users.setdefault(id(parameter), set()).add(name)
    with analysis_mode(model, []), intercepted(model, {name: note(name) for name in modules if name}):
        outputs = [one.grad_fn for one in tensors_in(model(example)) if one.grad_fn is not None]
    graph.calls.sort(key=lambda call: call.began)
    graph._ends = _read_graph(outputs, marks, graph._nodes)
    return graph


def _read_graph(outputs: Sequence[Any], marks: Mapping[Any, Key], nodes: list[_Node]) -> list[int]:
    """Appends the operations that lead to `outputs` to `nodes`; the places of the outputs among them."""
    places: dict[Any, int] = {}  # which keeps PyTorch's objects alive, and so their identity
    waiting: list[Any] = []

    def place_of(operation: Any) -> int:
        if operation not in places:
            places[operation] = len(nodes)
            nodes.append(_Node(marks.get(operation), []))
            waiting.append(operation)
        return places[operation]

    ends = [place_of(operation) for operation in outputs]
    while waiting:
        operation = waiting.pop()
        nodes[places[operation]].reads.extend(place_of(one) for one, _ in operation.next_functions if one is not None)
    return ends


@contextmanager
def intercepted(model: nn.Module, handlers: Mapping[str, Handler]) -> Iterator[None]:
    """While active, a handler stands in for the forward of each named module and is told which of its calls it is."""
    modules = {name: model.get_submodule(name) for name in handlers}
    counts, own = Counter[str](), dict[str, Any]({name: vars(m).get("forward") for name, m in modules.items()})

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
