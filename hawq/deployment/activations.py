"""Markers of activations become QuantizeLinear and DequantizeLinear, with as few operators around them as can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper

from hawq.deployment.folding import Layer
from hawq.deployment.graph import Graph, attribute, set_attribute
from hawq.deployment.grids import ActivationGrid, WeightGrid
from hawq.deployment.tracing import ACTIVATION, DOMAIN, Traced
from hawq.quantization.fake_quantize import nearest

Limits = tuple[float, float]
Strides = dict[str, tuple[int, ...]]
"""Marker of an activation (the name of its output) → the strides that its input was taken with."""

_INFINITE = (-np.inf, np.inf)


@dataclass(frozen=True)
class StoredActivation:
    """One grid of activations: `codes` is the tensor of integers, `key` the grid's name, `strides` (of each axis after
    the channels) which of its elements the file quantises; () for all."""

    key: str
    codes: str
    strides: tuple[int, ...] = ()


def store_activations(graph: Graph, layers: list[Layer], traced: Traced, runtime: str | None) -> list[StoredActivation]:
    """All markers of activations as operators, in order.

    Narrow grids have a Clip of their codes, which keeps ONNX Runtime's integer kernels. For "openvino" it clips the
    values before they are quantised, which OpenVINO computes together with the layer before. For "onnxruntime" a grid
    that reads another one's values reads them plus 0: an addition takes the integers of both, where ONNX Runtime would
    go through floats.
    """
    limits = _absorb_clips(graph, traced.activations)
    strides = _move_strides(graph, layers, traced.weights)
    stored = []
    for node in [node for node in graph.nodes if _is_marker(node)]:
        if runtime == "onnxruntime" and _is_dequantized(graph, node.input[0]):
            node.input[0] = graph.insert(node, "Add", [node.input[0], _quantized_zero(graph, node)])
        stored.append(_store(graph, node, _grid(node, traced.activations), strides, limits, runtime != "openvino"))
    return stored


def _is_dequantized(graph: Graph, tensor: str) -> bool:
    """Whether a tensor has the values of a grid, or those of them that a MaxPool takes."""
    producer = graph.producer(tensor)
    if producer is not None and producer.op_type == "MaxPool":
        producer = graph.producer(producer.input[0])
    return producer is not None and producer.op_type == "DequantizeLinear"


def _quantized_zero(graph: Graph, place: NodeProto) -> str:
    """A 0 that is dequantised before `place`."""
    zero, one = graph.store(np.array(0, np.uint8)), graph.store(np.array(1, np.float32))
    return graph.insert(place, "DequantizeLinear", [zero, one, zero])


def _is_marker(node: NodeProto) -> bool:
    """Whether a node marks an activation."""
    return (node.domain, node.op_type) == (DOMAIN, ACTIVATION)


def _grid(marker: NodeProto, grids: dict[str, ActivationGrid]) -> ActivationGrid:
    return grids[attribute(marker, "key").decode()]


def _absorb_clips(graph: Graph, grids: dict[str, ActivationGrid]) -> dict[str, Limits]:
    """Marker of an activation (the name of its output) → the least and the largest code that its input comes to.

    A ReLU, ReLU6 or other Clip that only markers read is taken out, because rounding is monotone: the code of
    clip(x, a, b) is the code of x clipped to those of a and b. Without it ONNX Runtime computes the convolution or
    addition before it in integers.
    """
    limits: dict[str, Limits] = {}
    for node in [node for node in reversed(graph.nodes) if node.op_type in ("Relu", "Clip")]:
        ends = _ends(graph, node)
        readers = graph.consumers(node.output[0])
        if ends is None or not readers or node.output[0] in graph.outputs() or not all(map(_is_marker, readers)):
            continue
        for reader in readers:
            low, high = _codes(ends, _grid(reader, grids))
            least, most = limits.get(reader.output[0], (low, high))  # of a Clip after this one
            limits[reader.output[0]] = min(max(low, least), most), max(min(high, most), least)
        graph.redirect(node.output[0], node.input[0])
        graph.remove(node)
    return limits


def _move_strides(graph: Graph, layers: list[Layer], weights: dict[str, WeightGrid]) -> Strides:
    """A MaxPool of single elements takes the strides of a convolution before its input is quantised; which ones.

    Done for convolutions with a kernel of one element, whose strides OpenVINO moves by itself to where the input is
    dequantised, and then computes the layer in float.
    """
    moved: Strides = {}
    for layer in layers:
        node, marker = layer.node, graph.producer(layer.node.input[0])
        if node.op_type != "Conv" or marker is None or not _is_marker(marker):
            continue
        shape = weights[layer.key].codes.shape if layer.key in weights else graph.shape(layer.weight)
        strides = tuple(attribute(node, "strides", [1]))
        alone = graph.only_consumer(marker.output[0]) is not None
        if max(strides) == 1 or max(shape[2:]) > 1 or any(attribute(node, "pads", [])) or not alone:
            continue
        kernel = [1] * len(strides)
        marker.input[0] = graph.insert(marker, "MaxPool", [marker.input[0]], kernel_shape=kernel, strides=strides)
        set_attribute(node, "strides", kernel)
        moved[marker.output[0]] = strides
    return moved


def _ends(graph: Graph, node: NodeProto) -> Limits | None:
    """The least and the largest value that a ReLU or Clip lets through; None where they are not known."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    given = [graph.array(name) if name else None for name in [*node.input[1:], "", ""][:2]]
    if any(name and value is None for name, value in zip(node.input[1:], given, strict=False)):
        return None
    low, high = (float(default if value is None else value) for value, default in zip(given, _INFINITE, strict=True))
    return (low, high) if low <= high else None


def _codes(ends: Limits, grid: ActivationGrid) -> Limits:
    """The codes that two values have on a grid."""
    step, low, high = (torch.tensor(part, dtype=torch.float32) for part in (grid.step, grid.low, grid.high))
    first, last = nearest(torch.tensor(ends, dtype=torch.float32), step, low, high).tolist()
    return first, last


def _store(
    graph: Graph,
    node: NodeProto,
    grid: ActivationGrid,
    strides: Strides,
    limits: dict[str, Limits],
    clip_codes: bool,
) -> StoredActivation:
    """QuantizeLinear → DequantizeLinear in place of a marker, with a Clip of the codes, or of the values before; none
    where the 8 bits are the grid."""
    kind = TensorProto.UINT8 if grid.storage == "uint8" else TensorProto.INT8
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    step = graph.store(np.array(grid.step, np.float32))
    values = node.input[0]
    # ONNX Runtime takes a ReLU or an addition into integers only where zero points stand in the file.
    zero = graph.store(np.array(grid.zero_point, dtype))
    ends = np.array(limits.get(node.output[0], (grid.low, grid.high)))
    info = np.iinfo(dtype)
    narrow = ends[0] + grid.zero_point > info.min or ends[1] + grid.zero_point < info.max
    if narrow and not clip_codes:
        clips = [graph.store(np.array(end * grid.step, np.float32)) for end in ends]
        values = graph.insert(node, "Clip", [values, *clips])
    codes = graph.insert(node, "QuantizeLinear", [values, step, zero])
    if narrow and clip_codes:
        clips = [graph.store(np.array(end + grid.zero_point, dtype)) for end in ends]
        codes = graph.insert(node, "Clip", [codes, *clips])
    graph.redirect(node.output[0], graph.insert(node, "DequantizeLinear", [codes, step, zero]))
    graph.remove(node)
    return StoredActivation(grid.name, codes, strides.get(node.output[0], ()))
