"""Other ways to an INT8 file, for comparison: ONNX Runtime's static quantisation, and Brevitas' QCDQ."""

from __future__ import annotations

import logging
import tempfile
import warnings
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
from hawq.deployment.tracing import INPUT, OUTPUT, without_quantizers
from hawq.quantization import input_quantizer, weight_quantizer

_BATCHES = (1, 64)


@dataclass(frozen=True)
class Rival:
    """A file that others would write."""

    name: str
    model: bytes


def static_int8(floating: bytes, calibration: Sequence[Tensor]) -> bytes:
    """ONNX Runtime's `quantize_static` (QDQ, per channel, min–max ranges of the calibration images).

    Activations are UINT8: with its default, INT8, ONNX Runtime has integer kernels on x86 for some of the layers only.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{INPUT: images.numpy()} for images in calibration]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(floating)
        wanted = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "per_channel": True}
        quantize_static(str(source), str(target), Reader(), **wanted)
        return target.read_bytes()


def brevitas_qcdq(model: nn.Module, calibration: Sequence[Tensor]) -> bytes:
    """Brevitas' QCDQ file of a network of the same structure, weights and bit-widths.

    Its grids are its own: symmetric weights without −2^(b−1), ranges from `calibration`. So its accuracy is that of a
    network which was not trained with these grids; bytes, kernels and speed are comparable.

    Args:
        model: a quantised network, whose forward pass `torch.fx` can trace; left unchanged.
        calibration: batches of inputs (N, ...).

    Raises:
        ImportError: brevitas or onnxoptimizer is not installed.
    """
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.calibrate import calibration_mode
    from torch.fx.experimental.optimization import fuse

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    network = fuse(without_quantizers(model)).eval()
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _brevitas_layer(network.get_submodule(name), layer))
    with torch.no_grad(), calibration_mode(network.eval()):
        for images in calibration:
            network(images)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target, batch = Path(folder) / "qcdq.onnx", {0: "batch"}
        export_onnx_qcdq(
            network, args=calibration[0][:2], export_path=str(target), opset_version=17, dynamo=False,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: batch, OUTPUT: batch},
        )  # fmt: skip
        return target.read_bytes()


def _brevitas_layer(plain: Any, quantized: nn.Module) -> nn.Module:
    """Brevitas' layer with the weights of `plain`, and the bit-widths of `quantized`."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    weight, inputs = weight_quantizer(quantized), input_quantizer(quantized)
    if weight is None or inputs is None:
        return plain  # type: ignore[no-any-return]
    signed = float(inputs.grid(torch.zeros(1))[1].reshape(-1)[0]) < 0
    settings = {
        "bias": plain.bias is not None,
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": weight.bits,
        "input_quant": Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat,
        "input_bit_width": inputs.bits,
    }
    layer: nn.Module
    if isinstance(plain, nn.Linear):
        layer = qnn.QuantLinear(plain.in_features, plain.out_features, **settings)
    else:
        about = (plain.kernel_size, plain.stride, plain.padding, plain.dilation, plain.groups)
        layer = qnn.QuantConv2d(plain.in_channels, plain.out_channels, *about, **settings)
    layer.load_state_dict(plain.state_dict(), strict=False)
    return layer


def measured(
    rival: Rival, floating: bytes, reference: Sequence[np.ndarray], data: LabelledImages, runtimes: Sequence[Runtime]
) -> list[str]:
    """Cells of one row per runtime, without the first bar; `reference` from `reference_classes`."""
    rows = []
    layers = [node.name for node in onnx.load_model_from_string(rival.model).graph.node if _is_layer(node)]
    for runtime in runtimes:
        try:
            sessions = [runtime.open(rival.model), runtime.open(floating)]
        except RuntimeError:  # OpenVINO refuses static INT8 files of networks with padded shortcuts
            rows.append(f"{rival.name} | {len(rival.model):,} | {runtime.name} refuses it | | | | |")
            continue
        right = same = total = 0
        for (images, labels), expected in zip(data, reference, strict=True):
            own = sessions[0]({INPUT: images.numpy()})[0].argmax(1)
            right += int((own == labels.numpy()).sum())
            same += int((own == expected).sum())
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
