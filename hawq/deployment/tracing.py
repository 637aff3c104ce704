"""From a PyTorch network to an ONNX graph in which every quantised tensor is marked."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.deployment.grids import ActivationGrid, WeightGrid, activation_grid, weight_grids
from hawq.quantization import FakeQuantizer
from hawq.quantization.residuals import RESIDUALS

DOMAIN = "hawq"
WEIGHT, ACTIVATION = "Weight", "Activation"
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Traced:
    """An ONNX graph with markers: operators `hawq::Weight` and `hawq::Activation` with the attribute `key`.

    Args:
        model: markers pass their input through; everything else is standard ONNX.
        weights: key → codes of the weight that the marker's input is.
        activations: key → grid of the marker's input.
    """

    model: onnx.ModelProto
    weights: dict[str, WeightGrid]
    activations: dict[str, ActivationGrid]


def trace(model: nn.Module, example: Tensor, opset: int, *, quantized: bool = True) -> Traced:
    """The network's graph, with batch norms still in it and the batch as a dynamic axis.

    Args:
        model: from `quantize`, `finetune` or `load`; left unchanged.
        example: (N, ...) input on the model's device.
        opset: of the standard operators.
        quantized: False leaves the quantisers of activations out: the float network of the same weights.

    Raises:
        ValueError: PyTorch cannot export the network.
    """
    marked = copy.deepcopy(model).eval()
    weights = weight_grids(marked) if quantized else {}
    activations = _mark(marked, weights, quantized=quantized)
    try:
        with _quiet("onnx_ir"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                marked,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise ValueError(
            f"PyTorch cannot export {type(model).__name__} to ONNX ({reason.strip()}): "
            "write its forward without what the exporter names, or leave deploy=none"
        ) from error
    assert program is not None
    return Traced(program.model_proto, weights, activations)


def without_quantizers(model: nn.Module) -> nn.Module:
    """A copy of a quantised network with the quantised weights as plain ones, and float activations."""
    copied = copy.deepcopy(model).eval()
    _mark(copied, {}, quantized=False)
    for module in copied.modules():
        if isinstance(getattr(module, "input_quantizer", None), nn.Identity):
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks_with_kwargs.clear()
            del module.input_quantizer
    return copied


def _mark(model: nn.Module, weights: dict[str, WeightGrid], *, quantized: bool) -> dict[str, ActivationGrid]:
    """Puts a marker in place of every quantiser of integers; returns the grids of the activations."""
    activations: dict[str, ActivationGrid] = {}
    unsigned = hasattr(model, RESIDUALS)
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            kind = type(module)  # a copy shares its class with the original, and removal edits the class
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            if name in weights:
                parametrize.register_parametrization(module, "weight", _Marker(WEIGHT, name), unsafe=True)
        quantizer = getattr(module, "input_quantizer", None)
        if isinstance(quantizer, FakeQuantizer):
            module.input_quantizer, grid = _marker(name, quantizer, unsigned, quantized)
            activations.update(grid)
    residuals = getattr(model, RESIDUALS, {})
    for name, quantizer in list(residuals.items()):
        residuals[name], grid = _marker(f"{RESIDUALS}.{name}", quantizer, unsigned, quantized)
        activations.update(grid)
    return activations


def _marker(
    name: str, quantizer: FakeQuantizer, unsigned: bool, quantized: bool
) -> tuple[nn.Module, dict[str, ActivationGrid]]:
    if not quantized or not quantizer.enabled:
        return nn.Identity(), {}
    grid = activation_grid(name, quantizer, unsigned=unsigned)
    return (_Marker(ACTIVATION, name) if grid.integer else _FloatGrid(grid)), {name: grid}


class _Marker(nn.Module):
    """x, as the output of an operator `hawq::<kind>` that names it."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__()
        self.kind, self.key = kind, key

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return x
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.kind}", (x,), attrs={"key": self.key}, dtype=x.dtype, shape=x.shape, version=1
        )
        return marked


class _FloatGrid(nn.Module):
    """s · clip(round(x · (1/s)), lo, hi) in float operators, for grids that 8-bit integers do not hold."""

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.grid, self.inverse = grid, float(torch.tensor(grid.step).reciprocal())

    def forward(self, x: Tensor) -> Tensor:
        grid, offset = self.grid, self.grid.low % 1
        ratio = x * self.inverse
        codes = torch.round(ratio - offset) + offset if offset else torch.round(ratio)
        quantized = torch.clamp(codes, grid.low, grid.high) * grid.step
        return torch.where(x.abs() > grid.step * grid.high, x, quantized) if grid.keeps_large else quantized


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The exporter logs every constant that it merges, and that a step is not 1; only errors are let through."""
    loggers = [logging.getLogger(part) for part in (name, "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
