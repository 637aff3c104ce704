"""Markers become integers: stored codes, QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from hawq.deployment.activations import StoredActivation, store_activations
from hawq.deployment.folding import Layer, find_layers, fold_batch_norms
from hawq.deployment.graph import Graph, attribute, set_attribute
from hawq.deployment.grids import INT4, INT8, WeightGrid
from hawq.deployment.tracing import DOMAIN, WEIGHT, Traced

OPSETS = (21, 22, 23)
_NEXT_TO_NOTHING = 1e-30


@dataclass(frozen=True)
class StoredWeight:
    """One weight as it stands in the file.

    Args:
        node: name of the operator that reads it.
        layer: qualified name of the layer.
        codes: name of the stored integers.
        storage: "int4" or "int8".
        signs: (out,) +1, −1 (batch norm's γ is negative) or 0 (γ = 0, all codes are 0).
        multiple: stored integer / code of the packed file, a power of two.
        transposed: the file holds (in, out).
    """

    node: str
    layer: str
    codes: str
    storage: str
    signs: np.ndarray
    multiple: int
    transposed: bool


@dataclass(frozen=True)
class Written:
    """A finished graph, and where in it everything is. `layers`: name of node → layer, of all convolutions and linear
    operators, also those in float."""

    model: onnx.ModelProto
    weights: tuple[StoredWeight, ...]
    activations: tuple[StoredActivation, ...]
    layers: dict[str, str]


def write_graph(traced: Traced, runtime: str | None = None) -> Written:
    """The deployable graph of a traced network.

    Args:
        traced: from `trace`.
        runtime: that the graph is written for: "onnxruntime", "openvino", or None for the plainest one. Codes are the
            same in all (`store_activations` says what differs).
    """
    graph = Graph(traced.model)
    layers = find_layers(graph)
    fold_batch_norms(graph, layers)
    weights, names = [], {}
    for place, layer in enumerate(layers):
        layer.node.name = layer.key or _float_name(layer.weight, place)
        names[layer.node.name] = layer.key or layer.node.name
        if layer.key is None:
            _scale_float_weight(graph, layer)
        else:
            weights.append(_store_weight(graph, layer, traced.weights[layer.key]))
            _give_bias(graph, layer, len(weights[-1].signs))
    _pass_other_weights(graph, traced.weights)
    activations = store_activations(graph, layers, traced, runtime)
    _name_layers(graph, layers)
    final = graph.finish()
    _stamp(graph.model)
    onnx.checker.check_model(graph.model, full_check=True)
    return Written(
        graph.model,
        tuple(replace(record, codes=final[record.codes]) for record in weights),
        tuple(replace(record, codes=final[record.codes]) for record in activations if record.codes in final),
        names,
    )


def _store_weight(graph: Graph, layer: Layer, grid: WeightGrid) -> StoredWeight:
    """INT4 → Cast(INT8) → DequantizeLinear in place of a marked weight, or INT8 → DequantizeLinear."""
    out = grid.codes.shape[0]
    factor = np.ones(out) if layer.factor is None else layer.factor
    signs = np.sign(factor).astype(np.int64)
    codes = grid.codes * signs.reshape(-1, *[1] * (grid.codes.ndim - 1))
    multiple = _multiple(codes)
    codes = (codes * multiple).astype(np.int64)
    steps = (
        grid.steps.astype(np.float64) / multiple * np.abs(factor) if layer.factor is not None else grid.steps / multiple
    )
    steps, signs, codes = _within_int8(steps, signs, codes)
    steps = np.where(steps != 0, steps, 1.0).astype(np.float32)  # γ = 0: all codes are 0
    axis = 0
    if layer.transposed:
        codes, axis = codes.T, codes.ndim - 1
    narrow = INT4[0] <= codes.min() and codes.max() <= INT4[1]
    kind = TensorProto.INT4 if narrow else TensorProto.INT8
    name = graph.store(_integers(codes, kind))
    read = graph.insert(layer.node, "Cast", [name], to=TensorProto.INT8) if narrow else name
    one = steps.size == 1
    scale = graph.store(steps.reshape(()) if one else steps)
    extra = {} if one else {"axis": axis}
    layer.node.input[1] = graph.insert(layer.node, "DequantizeLinear", [read, scale], **extra)
    if layer.node.op_type == "Gemm" and layer.transposed:
        set_attribute(layer.node, "transB", 0)
    storage = "int4" if narrow else "int8"
    return StoredWeight(layer.node.name, grid.layer, name, storage, signs, multiple, layer.transposed)


def _give_bias(graph: Graph, layer: Layer, out: int) -> None:
    """A bias that rounds to nothing where a convolution has none: without one, OpenVINO 2026.4 forgets the zero point
    of its input, and takes out a bias of zeros."""
    if layer.node.op_type == "Conv" and len(layer.node.input) < 3:
        layer.node.input.append(graph.store(np.full(out, _NEXT_TO_NOTHING, np.float32)))


def _multiple(codes: np.ndarray) -> int:
    """The power of two that codes are stored as multiples of, with as small a part of the step: 2 for half-integers,
    more while INT4 holds them. ONNX Runtime rounds biases to whole steps of weight times input; smaller ones lose less.
    """
    multiple = 2 if np.any(codes % 1) else 1
    while codes.any() and INT4[0] <= codes.min() * multiple * 2 and codes.max() * multiple * 2 <= INT4[1]:
        multiple *= 2
    return multiple


def _within_int8(steps: np.ndarray, signs: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A channel with −128 and a negative factor keeps its codes and gets a negative step: +128 is no INT8."""
    over = codes.reshape(len(codes), -1).max(1) > INT8[1]
    turn = np.where(over, -1, 1)
    return steps * turn, signs * turn, codes * turn.reshape(-1, *[1] * (codes.ndim - 1))


def _integers(codes: np.ndarray, kind: int) -> TensorProto:
    """INT4 or INT8 with raw bytes; two INT4 in a byte, the first one in its low half."""
    flat = codes.astype(np.int8).reshape(-1)
    if kind == TensorProto.INT4:
        nibbles = (np.append(flat, np.int8(0)) if flat.size % 2 else flat).view(np.uint8) & 15
        flat = (nibbles[::2] | (nibbles[1::2] << 4)).view(np.int8)
    return helper.make_tensor("", kind, codes.shape, flat.tobytes(), raw=True)


def stored_codes(value: TensorProto) -> np.ndarray:
    """The integers of a stored weight, from the bytes of the file."""
    raw = np.frombuffer(value.raw_data, np.uint8)
    if value.data_type == TensorProto.INT4:
        nibbles = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[: int(np.prod(value.dims))].astype(np.int64)
        return np.where(nibbles > 7, nibbles - 16, nibbles).reshape(tuple(value.dims))
    return raw.view(np.int8).astype(np.int64).reshape(tuple(value.dims))


def _scale_float_weight(graph: Graph, layer: Layer) -> None:
    """A float weight takes the batch norm's factor; one that another operator reads too stays as it is for that."""
    weight = graph.array(layer.weight)
    if layer.factor is None or weight is None:
        return
    factor = layer.factor.reshape(-1, *[1] * (weight.ndim - 1))
    layer.node.input[1] = graph.store((weight.astype(np.float64) * factor).astype(np.float32))


def _pass_other_weights(graph: Graph, weights: dict[str, WeightGrid]) -> None:
    """A marked weight that anything else reads is stored by its codes as well, and dequantised for it."""
    for node in [node for node in graph.nodes if node.domain == DOMAIN and node.op_type == WEIGHT]:
        if graph.consumers(node.output[0]):
            grid = weights[attribute(node, "key").decode()]
            value = (grid.codes * grid.steps.reshape(-1, *[1] * (grid.codes.ndim - 1))).astype(np.float32)
            graph.redirect(node.output[0], graph.store(value))
        graph.remove(node)


def _name_layers(graph: Graph, layers: list[Layer]) -> None:
    """Only convolutions and linear operators have names: those of their layers."""
    named = {id(layer.node) for layer in layers}
    for node in graph.nodes:
        if id(node) not in named:
            node.name = ""


def _float_name(weight: str, place: int) -> str:
    return weight.removesuffix(".weight") if weight.endswith(".weight") else f"layer{place}"


def _stamp(model: onnx.ModelProto) -> None:
    """Standard operators only; nothing of the exporter's notes."""
    standard = [item for item in model.opset_import if item.domain in ("", "ai.onnx")]
    del model.opset_import[:], model.metadata_props[:], model.functions[:]
    model.opset_import.extend(standard)
    model.producer_name, model.producer_version, model.doc_string = "hawq", "", ""
    model.ir_version = max(model.ir_version, 10)
