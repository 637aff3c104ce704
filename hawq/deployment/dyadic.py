"""A network in integers only (HAWQ-V3, 2011.10680, §3): from the codes of the image to the logits.

Slow and plain, as a reference. Products are summed in integers; a tensor's step changes by a multiplication with a
dyadic number b/2^c and a shift, so no division and no float takes part, and any machine gives the same integers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from hawq.deployment.graph import Graph, attribute
from hawq.deployment.integers import Codes, Integers, common_step, rescaled
from hawq.deployment.products import convolution, gemm, matmul
from hawq.deployment.tracing import INPUT, trace
from hawq.deployment.writing import stored_codes, write_graph
from hawq.modes import eval_mode
from hawq.progress import SILENT, Progress
from hawq.quantization import LSQ
from hawq.quantization.residuals import RESIDUALS, add_residual_quantizers, enable_residual_quantizers

DYADIC_SCHEMA = "hawq.dyadic/1"
_BITS = 8  # of additions
_MOVES = ("Flatten", "Reshape", "Slice", "Transpose", "MaxPool", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class DyadicResult:
    """What integers alone came to: accuracies in percent, same class as PyTorch in percent, and layer → bits of its
    accumulators, proven for any image and seen in these."""

    accuracy: float
    reference_accuracy: float
    same_class: float
    num_images: int
    multiplier_bits: int
    proven_bits: dict[str, int]
    seen_bits: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the schema."""
        return {"schema": DYADIC_SCHEMA, **vars(self)}

    def __str__(self) -> str:
        widest = max(self.proven_bits, key=self.proven_bits.__getitem__)
        return (
            f"integers only: accuracy {self.accuracy:.2f} % (PyTorch {self.reference_accuracy:.2f} %), "
            f"{self.same_class:.2f} % of {self.num_images:,} images in the same class; accumulators of at most "
            f"{self.proven_bits[widest]} bits ({widest}), {max(self.seen_bits.values())} seen"
        )


def integer_network(model: nn.Module, calibration: Sequence[Tensor], *, multiplier_bits: int = 15) -> IntegerNetwork:
    """The network in integers, additions included.

    Args:
        model: from `quantize`, `finetune` or `load`; left unchanged.
        calibration: batches of training inputs (N, ...), which the ranges of 8-bit additions come from unless the
            network was trained with them.
        multiplier_bits: of the numerators b of b/2^c.

    Raises:
        ValueError: an operator that integers do not have here, or an accumulator that may leave 32 bits; by layer.
    """
    if not calibration:
        raise ValueError("calibration is empty: give at least one batch of training inputs")
    prepared = copy.deepcopy(model).eval().cpu()
    if not hasattr(prepared, RESIDUALS):
        prepared = add_residual_quantizers(prepared, LSQ(), _BITS)
        enable_residual_quantizers(prepared, calibration)
    written = write_graph(trace(prepared, calibration[0][:2].cpu(), 21))
    return IntegerNetwork(Graph(written.model), prepared, multiplier_bits)


@dataclass
class IntegerNetwork:
    """Runs the graph of a deployed network node by node in integers; `network` is what PyTorch computes with."""

    graph: Graph
    network: nn.Module
    multiplier_bits: int
    proven_bits: dict[str, int] = field(default_factory=dict)
    seen_bits: dict[str, int] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> np.ndarray:
        """(N, ...) images → (N, classes) int64 logits, all of one step.

        Raises ValueError as `integer_network` does.
        """
        values: dict[str, Any] = {INPUT: images.double().numpy()}
        for name, value in self.graph.values.items():
            values[name] = stored_codes(value) if value.data_type in (3, 22) else self.graph.array(name)
        for node in self.graph.nodes:
            values[node.output[0]] = self._run(node, [values[name] for name in node.input if name])
        logits: Integers = values[next(iter(self.graph.outputs()))]
        return rescaled(logits, float(np.max(logits.step)) * 2.0**-8, self.multiplier_bits).values

    def report(self, data: Sequence[tuple[Tensor, Tensor]], progress: Progress = SILENT) -> DyadicResult:
        """Accuracy on batches of (images, labels), beside that of PyTorch, and the accumulators' bits."""
        own, reference, labels = [], [], []
        with eval_mode(self.network), torch.no_grad(), progress.task("integers only", len(data)) as task:
            for images, truth in data:
                own.append(self(images).argmax(1))
                reference.append(self.network(images).argmax(1).numpy())
                labels.append(truth.numpy())
                task.advance(1)
        ours, theirs, known = (np.concatenate(parts) for parts in (own, reference, labels))
        return DyadicResult(
            accuracy=100 * float((ours == known).mean()),
            reference_accuracy=100 * float((theirs == known).mean()),
            same_class=100 * float((ours == theirs).mean()),
            num_images=len(truth),
            multiplier_bits=self.multiplier_bits,
            proven_bits=self.proven_bits,
            seen_bits=self.seen_bits,
        )

    def _run(self, node: NodeProto, inputs: list[Any]) -> Any:
        known: dict[str, Callable[[NodeProto, list[Any]], Any]] = {
            "QuantizeLinear": self._quantize,
            "Clip": lambda _, given: given[0].clipped(int(given[1]), int(given[2])),
            "DequantizeLinear": _dequantize,
            "Cast": lambda _, given: given[0],
            "Identity": lambda _, given: given[0],
            "Conv": self._product,
            "Gemm": self._product,
            "MatMul": self._product,
            "Relu": lambda _, given: given[0].clamped(0),
            "Add": self._add,
            "Concat": self._concat,
            "Pad": _pad,
            "ReduceMean": _mean,
            "GlobalAveragePool": _mean,
        }
        if node.op_type in _MOVES and isinstance(inputs[0], Integers):
            return _move(node, inputs)
        if node.op_type not in known or not any(isinstance(one, (Integers, Codes, np.ndarray)) for one in inputs):
            raise ValueError(f"{node.op_type} has no form in integers here: leave deploy=dyadic for this network")
        return known[node.op_type](node, inputs)

    def _quantize(self, _: NodeProto, inputs: list[Any]) -> Codes:
        x, step, zero = inputs[0], float(inputs[1]), inputs[2]
        info = np.iinfo(zero.dtype)
        if isinstance(x, Integers):
            codes = rescaled(x, step, self.multiplier_bits).values + int(zero)
        else:
            codes = np.rint(x / step).astype(np.int64) + int(zero)  # the image alone comes as floats
        return Codes(codes, info.min, info.max).clipped(info.min, info.max)

    def _product(self, node: NodeProto, inputs: list[Any]) -> Integers:
        if not all(isinstance(one, Integers) for one in inputs[:2]):
            raise ValueError(f"{node.name} is float: deploy=dyadic needs every layer in integers")
        makers = {"Conv": convolution, "Gemm": gemm, "MatMul": matmul}
        result, proven = makers[node.op_type](node, *inputs)
        self._note(self.proven_bits, node.name, proven)
        self._note(self.seen_bits, node.name, int(np.abs(result.values).max(initial=0)).bit_length() + 1)
        return result

    def _note(self, where: dict[str, int], name: str, bits: int) -> None:
        where[name] = max(where.get(name, 0), bits)

    def _add(self, _: NodeProto, inputs: list[Any]) -> Integers:
        if isinstance(inputs[0], np.ndarray):
            inputs = inputs[::-1]
        first, second = inputs
        if isinstance(second, np.ndarray):
            return first.shifted(np.rint(second / first.step).astype(np.int64))
        step = common_step(first, second)
        one, other = (rescaled(part, step, self.multiplier_bits) for part in (first, second))
        return Integers(one.values + other.values, np.array(step), one.low + other.low, one.high + other.high)

    def _concat(self, node: NodeProto, inputs: list[Any]) -> Integers:
        step = common_step(*inputs)
        parts = [rescaled(part, step, self.multiplier_bits) for part in inputs]
        joined = np.concatenate([part.values for part in parts], axis=attribute(node, "axis"))
        return Integers(joined, np.array(step), min(part.low for part in parts), max(part.high for part in parts))


def _dequantize(node: NodeProto, inputs: list[Any]) -> Integers:
    """Codes without their zero point, and their step; a weight's steps are shaped along its axis."""
    codes, step = inputs[0], np.asarray(inputs[1], np.float64)
    if isinstance(codes, np.ndarray):
        codes = Codes(codes.astype(np.int64), int(codes.min()), int(codes.max()))
    zero = int(inputs[2]) if len(inputs) > 2 else 0
    if step.ndim:
        shape = [1] * codes.values.ndim
        shape[attribute(node, "axis", 1)] = -1
        step = step.reshape(shape)
    return Integers(codes.values - zero, step, codes.low - zero, codes.high - zero)


def _pad(node: NodeProto, inputs: list[Any]) -> Integers:
    x, pads = inputs[0], np.asarray(inputs[1]).reshape(2, -1)
    axes = range(x.values.ndim) if len(inputs) < 4 else [int(axis) % x.values.ndim for axis in inputs[3]]
    width = [(0, 0)] * x.values.ndim
    for place, axis in enumerate(axes):
        width[axis] = (int(pads[0, place]), int(pads[1, place]))
    return Integers(np.pad(x.values, width), x.step, min(x.low, 0), max(x.high, 0))


def _mean(node: NodeProto, inputs: list[Any]) -> Integers:
    """The sum, with the step of the mean."""
    x = inputs[0]
    given = inputs[1] if len(inputs) > 1 else attribute(node, "axes", range(2, x.values.ndim))
    axes = tuple(int(axis) for axis in given)
    count = int(np.prod([x.values.shape[axis] for axis in axes]))
    keep = bool(attribute(node, "keepdims", 1))
    return Integers(x.values.sum(axes, keepdims=keep), x.step / count, x.low * count, x.high * count)


def _move(node: NodeProto, inputs: list[Any]) -> Integers:
    """Operators that only move integers, or choose among them."""
    x = inputs[0]
    if x.step.ndim:
        raise ValueError(f"{node.op_type} follows a layer without a grid between them: deploy=dyadic needs one there")
    feeds = dict(zip(node.input, [x.values, *inputs[1:]], strict=True))
    moved: Any = next(iter(ReferenceEvaluator(node).run(None, feeds)))
    return Integers(moved, x.step, x.low, x.high)
