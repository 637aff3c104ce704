"""Batch norm folded into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from hawq.deployment.graph import PRODUCTS, Graph, attribute
from hawq.deployment.tracing import DOMAIN, WEIGHT


@dataclass
class Layer:
    """A convolution or linear operator with its weight, and what a batch norm after it made of both.

    With batch norm y = γ (x − μ)/√(σ² + ε) + β: factor k = γ/√(σ² + ε) per output channel, bias (b − μ) k + β.

    Args:
        node: Conv, Gemm, or MatMul.
        key: of the weight's marker; None for a float weight.
        weight: name of the tensor that holds the float weight.
        transposed: the operator reads the weight as (in, out).
        factor: (out,) float64, or None without batch norm.
    """

    node: NodeProto
    key: str | None
    weight: str
    transposed: bool
    factor: np.ndarray | None = None


def find_layers(graph: Graph) -> list[Layer]:
    """Every Conv, Gemm and MatMul whose weight is a stored value, marked or not."""
    found = []
    for node in graph.nodes:
        if node.op_type in PRODUCTS:
            layer = _layer(graph, node)
            if layer is not None:
                found.append(layer)
    return found


def _layer(graph: Graph, node: NodeProto) -> Layer | None:
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    source = graph.producer(node.input[1])
    if source is not None and source.op_type == "Transpose" and list(attribute(source, "perm", [1, 0])) == [1, 0]:
        transposed, source = not transposed, graph.producer(source.input[0])
        if transposed:
            return None
        transposed = True  # the stored weight is (out, in), and read the other way round
    if source is None:
        is_value = node.input[1] in graph.values
        return Layer(node, None, node.input[1], transposed) if is_value else None
    if source.op_type == WEIGHT and source.domain == DOMAIN:
        return Layer(node, attribute(source, "key").decode(), source.input[0], transposed)
    return None


def fold_batch_norms(graph: Graph, layers: list[Layer]) -> None:
    """Takes out every batch norm whose only input is a Conv or Gemm that nothing else reads; a batch norm anywhere else
    stays. Computed in float64, rounded to float32 once."""
    for layer in layers:
        norm = graph.only_consumer(layer.node.output[0])
        if norm is None or norm.op_type != "BatchNormalization" or layer.node.op_type not in ("Conv", "Gemm"):
            continue
        if layer.node.op_type == "Gemm" and (layer.transposed or not _is_plain(layer.node)):
            continue
        parts = [graph.array(tensor) for tensor in norm.input[1:]]
        if any(part is None for part in parts):
            continue
        gamma, beta, mean, variance = (part.astype(np.float64) for part in parts if part is not None)
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        bias = _bias(graph, layer.node)
        if bias is None:
            continue
        layer.factor = factor
        set_bias(graph, layer.node, (bias - mean) * factor + beta)
        graph.remove(norm)
        graph.redirect(norm.output[0], layer.node.output[0])


def set_bias(graph: Graph, node: NodeProto, bias: np.ndarray) -> None:
    """Gives a Conv or Gemm a bias (out,); one of zeros is left out."""
    del node.input[2:]
    if np.any(bias):
        node.input.append(graph.store(bias.astype(np.float32)))


def _bias(graph: Graph, node: NodeProto) -> np.ndarray | None:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(1)
    bias = graph.array(node.input[2])
    return None if bias is None else bias.astype(np.float64)


def _is_plain(node: NodeProto) -> bool:
    return attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
