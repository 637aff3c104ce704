"""ONNX: a quantised network for any runtime."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawq.layers import weight_name
from hawq.quantization import input_quantizer


def export_onnx(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Writes a quantised network as ONNX, weights on their grids, input quantisers as round and clip.

    Args:
        model: from `quantize`, `finetune` or `load`; left unchanged.
        path: of the `.onnx` file.
        example: (N, ...) input on the model's device; N becomes a dynamic axis.

    Returns:
        `path`. Raises what `torch.onnx.export` does for operators that ONNX lacks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frozen = copy.deepcopy(model).eval()
    for module in list(frozen.modules()):
        if parametrize.is_parametrized(module, weight_name(module)):
            kind = type(module)  # a copy shares its class with the original, and removal edits the class
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            parametrize.remove_parametrizations(module, weight_name(module), leave_parametrized=True)
        quantizer = input_quantizer(module)
        if quantizer is not None:
            module.input_quantizer = _RoundAndClip(*quantizer.grid(example), keeps_large=quantizer.keeps_large)
    with _quiet("onnx_ir"):
        torch.onnx.export(
            frozen,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The exporter logs every constant that it merges; only warnings are let through."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _RoundAndClip(nn.Module):
    """s · clip(round(x · (1/s)), lo, hi) in plain operators, which every exporter supports."""

    def __init__(self, scale: Tensor, low: Tensor, high: Tensor, *, keeps_large: bool) -> None:
        super().__init__()
        self.keeps_large = keeps_large
        self.scale, self.inverse = float(scale.detach()), float(scale.detach().reciprocal())
        self.low, self.high = float(low), float(high)
        self.offset = self.low % 1  # of a grid without zero

    def forward(self, x: Tensor) -> Tensor:
        ratio = x * self.inverse
        codes = torch.round(ratio - self.offset) + self.offset if self.offset else torch.round(ratio)
        quantized = torch.clamp(codes, self.low, self.high) * self.scale
        return torch.where(x.abs() > self.scale * self.high, x, quantized) if self.keeps_large else quantized
