"""Other ways to an INT8 file, for comparison: ONNX Runtime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from hawq.deployment.measuring import LabelledImages
from hawq.deployment.runtimes import Runtime, milliseconds
from hawq.deployment.tracing import INPUT
from hawq.modes import eval_mode

_BATCHES = (1, 64)


@dataclass(frozen=True)
class Rival:
    """A file that others would write."""

    name: str
    model: bytes


def static_int8(floating: bytes, calibration: Sequence[Tensor]) -> bytes:
    """ONNX Runtime's `quantize_static` (QDQ, per channel, min–max ranges of the calibration images)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{INPUT: images.numpy()} for images in calibration]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(floating)
        quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        return target.read_bytes()


def measured(
    rival: Rival, floating: bytes, network: nn.Module, data: LabelledImages, runtimes: Sequence[Runtime]
) -> list[str]:
    """Cells of one row per runtime, without the first bar."""
    rows = []
    layers = [node.name for node in onnx.load_model_from_string(rival.model).graph.node if _is_layer(node)]
    for runtime in runtimes:
        try:
            sessions = [runtime.open(rival.model), runtime.open(floating)]
        except RuntimeError:  # OpenVINO refuses static INT8 files of networks with padded shortcuts
            rows.append(f"{rival.name} | {len(rival.model):,} | {runtime.name} refuses it | | | | |")
            continue
        right = same = total = 0
        with eval_mode(network), torch.no_grad():
            for images, labels in data:
                own = sessions[0]({INPUT: images.numpy()})[0].argmax(1)
                right += int((own == labels.numpy()).sum())
                same += int((own == network(images).argmax(1).numpy()).sum())
                total += len(labels)
        kernels, _ = runtime.kernels(rival.model, {INPUT: data[0][0][:8].numpy()}, layers)
        speeds = []
        for batch in _BATCHES:
            own_ms, float_ms = milliseconds(sessions, {INPUT: np.resize(data[0][0].numpy(), _shape(data, batch))}, 1.0)
            speeds.append(f"{float_ms / own_ms:.2f}")
        rows.append(
            f"{rival.name} | {len(rival.model):,} | {runtime.name} | "
            f"{sum(kernel.integer for kernel in kernels.values())} of {len(layers)} | {100 * right / total:.2f} | "
            f"{100 * same / total:.2f} | {' / '.join(speeds)} |"
        )
    return rows


def _shape(data: LabelledImages, batch: int) -> tuple[int, ...]:
    return (batch, *data[0][0].shape[1:])


def _is_layer(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul")
