"""Does the file compute what the network computes? Codes of the weights, then each layer by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from hawq.deployment.graph import PRODUCTS, Graph
from hawq.deployment.grids import ActivationGrid, WeightGrid
from hawq.deployment.runtimes import Runtime
from hawq.deployment.tracing import INPUT, OUTPUT
from hawq.deployment.writing import StoredWeight, Written, stored_codes
from hawq.modes import eval_mode
from hawq.quantization import FakeQuantizer
from hawq.quantization.fake_quantize import nearest
from hawq.quantization.residuals import RESIDUALS

MOST_DIFFERING = 1e-4
_FEW = 3  # codes that may lie on a border by chance
_COARSE = 4  # bits of a grid for which shares of differing codes are stated


@dataclass(frozen=True)
class Parity:
    """How many codes differ where a runtime was fed the reference's own input codes.

    Args:
        key: of the grid whose codes were compared: the input of that layer, made by those before it.
        num_differing, num_codes: how many of its codes differ, of how many.
        largest: largest difference of a code.
        num_values: codes of the reference among those that differ.
        has_products: whether sums of products lie between this grid and those before it.
    """

    key: str
    num_differing: int
    num_codes: int
    largest: int
    num_values: int = 0
    has_products: bool = True

    @property
    def differing(self) -> float:
        """Share of the codes."""
        return self.num_differing / self.num_codes


def check_weight_codes(
    model: onnx.ModelProto, weights: Mapping[str, WeightGrid], stored: tuple[StoredWeight, ...]
) -> None:
    """Raises ValueError unless the stored integers are the packed codes times a power of two, times
    −1 in channels with a negative batch norm factor, and 0 in channels with the factor 0."""
    values = {value.name: value for value in model.graph.initializer}
    for one in stored:
        found = stored_codes(values[one.codes])
        found = found.T if one.transposed else found
        codes = weights[one.layer].codes
        signs = one.signs.reshape(-1, *[1] * (codes.ndim - 1))
        wrong = int((found != codes * one.multiple * signs).sum())
        if wrong:
            raise ValueError(f"{one.layer}: {wrong} of {codes.size} stored codes are not those of the packed file")


@torch.no_grad()
def reference_codes(
    model: nn.Module, images: Tensor, grids: Mapping[str, ActivationGrid]
) -> dict[tuple[str, int], np.ndarray]:
    """(grid, number of its call) → codes as the file stores them, of a network that PyTorch runs."""
    found: dict[tuple[str, int], np.ndarray] = {}
    calls: Counter[str] = Counter()
    handles = []

    def keep(name: str, grid: ActivationGrid) -> None:
        def hook(quantizer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            codes = nearest(inputs[0], *quantizer.grid(inputs[0])) + grid.zero_point  # type: ignore[operator]
            found[name, calls[name]] = codes.cpu().numpy().astype(grid.storage)
            calls[name] += 1

        handles.append(_quantizers(model)[name].register_forward_pre_hook(hook))

    for name, grid in grids.items():
        if grid.integer:
            keep(name, grid)
    try:
        with eval_mode(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _quantizers(model: nn.Module) -> dict[str, FakeQuantizer]:
    inputs = {name: getattr(layer, "input_quantizer", None) for name, layer in model.named_modules()}
    residuals = {f"{RESIDUALS}.{name}": one for name, one in getattr(model, RESIDUALS, nn.ModuleDict()).items()}
    return {name: one for name, one in {**inputs, **residuals}.items() if isinstance(one, FakeQuantizer)}


def layer_parity(
    written: Written, runtime: Runtime, images: np.ndarray, codes: Mapping[tuple[str, int], np.ndarray]
) -> list[Parity]:
    """Each grid's codes as the runtime computes them from the reference's codes before it, against the reference's.

    The graph is cut at every grid, so that one run checks all layers and no difference reaches a later layer.
    Raises ValueError where the graph has other grids than the network.
    """
    calls: Counter[str] = Counter()
    names: list[tuple[str, int]] = []
    places: list[tuple[Any, ...]] = []
    for one in written.activations:
        names.append((one.key, calls[one.key]))
        places.append((..., *(slice(None, None, stride) for stride in one.strides)))
        calls[one.key] += 1
    if set(names) != set(codes):
        absent = sorted({key for key, _ in set(codes) ^ set(names)})
        raise ValueError(f"the graph has other quantisers than the network: {', '.join(absent)}")
    tensors = [one.codes for one in written.activations]
    expected = [np.ascontiguousarray(codes[name][place]) for name, place in zip(names, places, strict=True)]
    cut = _cut(written.model, tensors, expected)
    feeds = {INPUT: images} | {f"{tensor}_given": own for tensor, own in zip(tensors, expected, strict=True)}
    read = {value.name for value in cut.graph.input}
    found = runtime.open(cut.SerializeToString())({name: value for name, value in feeds.items() if name in read})
    graph, result = Graph(written.model), []
    for (key, _), own, wanted, tensor in zip(names, found[1:], expected, tensors, strict=True):
        difference = np.abs(own.astype(np.int64) - wanted.astype(np.int64))
        differs = difference > 0
        counts = int(differs.sum()), difference.size, int(difference.max()), len(np.unique(wanted[differs]))
        result.append(Parity(key, *counts, _has_products(graph, tensor, set(tensors))))
    return result


def _has_products(graph: Graph, tensor: str, grids: set[str]) -> bool:
    """Whether a tensor is made of sums of products of the grids before it."""
    seen, waiting = {tensor}, [tensor]
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None:
            continue
        if node.op_type in PRODUCTS:
            return True
        new = set(node.input) - seen - grids
        seen |= new
        waiting += new
    return False


def refuse_wrong_layers(
    parities: list[Parity], runtime: str, most: float = MOST_DIFFERING, bits: Mapping[str, int] | None = None
) -> None:
    """Raises ValueError for a layer whose codes differ by more than rounding: too many of them, or one by more than 1.

    Sums in another order differ by a share of their range, and a grid of b bits has 2^b borders in its range. So `most`
    of the codes may differ up to four bits, and twice as many with each bit more (and a few, where there are few).
    Where a grid only takes over values of others, equal ones go together: three of its codes may lie on borders.

    Args:
        parities: of one runtime.
        runtime: its name.
        most: share of the codes of a grid of up to four bits.
        bits: key of a grid → its bit-width; four unless given.
    """
    for one in parities:
        finer = 2 ** max((bits or {}).get(one.key, _COARSE) - _COARSE, 0)
        many = one.num_differing > most * finer * one.num_codes + _FEW
        if one.largest > 1 or (many and (one.has_products or one.num_values > _FEW)):
            raise ValueError(
                f"{one.key}: {100 * one.differing:.3g} % of its input codes differ in {runtime}, by up to "
                f"{one.largest}: the file does not compute what the network computes"
            )


def _cut(model: onnx.ModelProto, tensors: list[str], codes: list[np.ndarray]) -> onnx.ModelProto:
    """A copy in which every named tensor is an output, and whoever read it reads an input of its own instead."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = Graph(copied)
    for tensor, own in zip(tensors, codes, strict=True):
        readers = graph.consumers(tensor)
        for node in readers:
            node.input[:] = [f"{tensor}_given" if name == tensor else name for name in node.input]
        kind = helper.np_dtype_to_tensor_dtype(own.dtype)
        shape = ["batch", *own.shape[1:]]
        if readers:
            copied.graph.input.append(helper.make_tensor_value_info(f"{tensor}_given", kind, shape))
        copied.graph.output.append(helper.make_tensor_value_info(tensor, kind, shape))
    del copied.graph.node[:], copied.graph.value_info[:]
    copied.graph.node.extend(graph.nodes)
    assert copied.graph.output[0].name == OUTPUT
    return copied
