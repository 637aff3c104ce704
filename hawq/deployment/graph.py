"""An ONNX graph that is easy to change: who makes a tensor, who reads it, what it holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that sum products of their inputs."""


class Graph:
    """Nodes in order, tensors with known values, inputs and outputs of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.values: dict[str, TensorProto] = {value.name: value for value in model.graph.initializer}
        self._numbers = itertools.count()

    def outputs(self) -> set[str]:
        """Tensors that the graph returns."""
        return {output.name for output in self.model.graph.output}

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that makes a tensor; None for inputs and stored values."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read a tensor, in order."""
        return [node for node in self.nodes if tensor in node.input]

    def only_consumer(self, tensor: str) -> NodeProto | None:
        """The one node that reads a tensor, if it is read nowhere else."""
        found = self.consumers(tensor)
        return found[0] if len(found) == 1 and tensor not in self.outputs() else None

    def array(self, tensor: str) -> np.ndarray | None:
        """A stored value as an array, or None for what is computed."""
        return numpy_helper.to_array(self.values[tensor]) if tensor in self.values else None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Of a stored value; () for what is computed."""
        return tuple(self.values[tensor].dims) if tensor in self.values else ()

    def store(self, value: np.ndarray | TensorProto) -> str:
        """Adds a value, or finds the same one, and returns its name."""
        made = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value, order="C"))
        for name, other in self.values.items():
            same = made.data_type == other.data_type and list(made.dims) == list(other.dims)
            if same and made.raw_data and made.raw_data == other.raw_data:
                return name
        made.name = self.new_name()
        self.values[made.name] = made
        return made.name

    def new_name(self) -> str:
        """A name for a tensor that none has yet."""
        return f"+{next(self._numbers)}"  # PyTorch gives no name with a plus

    def insert(self, place: NodeProto, operator: str, inputs: Iterable[str], **attributes: Any) -> str:
        """Adds a node before `place` and returns the name of its output."""
        node = helper.make_node(operator, list(inputs), [self.new_name()], **attributes)
        self.nodes.insert(self.index(place), node)
        return node.output[0]

    def index(self, node: NodeProto) -> int:
        """The place of this very node."""
        return next(place for place, other in enumerate(self.nodes) if other is node)

    def remove(self, node: NodeProto) -> None:
        """Takes a node out."""
        del self.nodes[self.index(node)]

    def redirect(self, old: str, new: str) -> None:
        """Whoever read `old` reads `new`. An output of the graph keeps its name: its producer makes it."""
        if old in self.outputs():
            producer = self.producer(new)
            if producer is None or new in self.outputs():
                self.nodes.append(helper.make_node("Identity", [new], [old]))
                return
            producer.output[list(producer.output).index(new)] = old
            old, new = new, old
        for node in self.nodes:
            for place, tensor in enumerate(node.input):
                if tensor == old:
                    node.input[place] = new

    def finish(self) -> dict[str, str]:
        """Gives the model these nodes, only the values that they read, and short names: tensor → its new name."""
        self._remove_unread()
        names = self._short_names()
        for node in self.nodes:
            node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
            node.output[:] = [names.get(tensor, tensor) for tensor in node.output]
            node.doc_string = ""
            del node.metadata_props[:]
        read = {tensor for node in self.nodes for tensor in node.input}
        kept = {names.get(name, name): value for name, value in self.values.items()}
        graph = self.model.graph
        outputs = self.outputs()
        del graph.node[:], graph.initializer[:], graph.value_info[:], graph.metadata_props[:]
        graph.node.extend(self.nodes)
        for name, value in kept.items():
            if name in read or name in outputs:
                value.name = name
                value.doc_string = ""
                graph.initializer.append(value)
        return names

    def _remove_unread(self) -> None:
        wanted = self.outputs()
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        self.nodes = kept[::-1]

    def _short_names(self) -> dict[str, str]:
        """Tensor → a name of one to three letters; inputs and outputs of the graph keep theirs."""
        fixed = self.outputs() | {value.name for value in self.model.graph.input} | {""}
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        fresh = ("".join(parts) for length in itertools.count(1) for parts in itertools.product(letters, repeat=length))
        unused = (name for name in fresh if name not in fixed)
        tensors = [tensor for node in self.nodes for tensor in (*node.input, *node.output)]
        return {tensor: next(unused) for tensor in dict.fromkeys(tensors) if tensor not in fixed}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def set_attribute(node: NodeProto, name: str, value: int | list[int]) -> None:
    """Gives a node's attribute a value."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
