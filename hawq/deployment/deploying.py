"""A quantised network as an ONNX file that is small, computes in integers, and has been checked."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hawq.checks import check_choice, check_range
from hawq.deployment.grids import ActivationGrid
from hawq.deployment.measuring import LabelledImages, measure, reference_classes
from hawq.deployment.parity import check_weight_codes, layer_parity, reference_codes, refuse_wrong_layers
from hawq.deployment.records import DEPLOYED_SCHEMA, Deployed, LayerRecord, RuntimeRecord
from hawq.deployment.runtimes import OnnxRuntime, Runtime, available, runtime_versions
from hawq.deployment.settings import PROFILES
from hawq.deployment.tracing import Traced, trace
from hawq.deployment.writing import OPSETS, Written, write_graph
from hawq.export import load
from hawq.files import write_whole
from hawq.progress import SILENT, Progress
from hawq.quantization import LSQ, Quantization
from hawq.quantization.residuals import RESIDUALS, add_residual_quantizers, enable_residual_quantizers
from hawq.records import to_dict

_PARITY_IMAGES = 32
_MOST_IN_RUNTIMES = 1e-3  # other runtimes sum in another order: 1.2e-4 was the most on ResNet20
RESIDUAL_BITS = 8
RUNTIMES = {"exact": "openvino", "integer": "onnxruntime"}
"""Profile → the runtime that its file is written for."""

log = logging.getLogger(__name__)


def deploy(
    model: nn.Module | str | Path,
    path: str | Path,
    example: Tensor,
    *,
    network: nn.Module | None = None,
    profile: str = "exact",
    calibration: Sequence[Tensor] = (),
    data: LabelledImages | None = None,
    opset: int = 21,
    runtimes: Sequence[Runtime] | None = None,
    timed_batches: Sequence[int] = (1, 64),
    progress: Progress = SILENT,
) -> Deployed:
    """Writes a quantised network as ONNX, checks it, and writes what was found beside it as `deploy.json`.

    Weights are INT4 where codes fit into −8 … 7, else INT8; batch norms are folded; activations are UINT8 or INT8.

    Args:
        model: from `quantize`, `finetune` or `load`, left unchanged; or a packed file, whose architecture `network` is.
        path: of the `.onnx` file.
        example: (N, ...) inputs on the model's device, up to 32 of which check the layers; N is a dynamic axis.
        network: the float network of a packed file.
        profile: "exact" leaves additions in float, for every runtime; "integer" puts 8-bit quantisers on everything
            that enters an addition, a concatenation or a pooling, unless the network was trained with them.
        calibration: batches of training inputs, which the ranges of these quantisers come from.
        data: test images and labels, to compare accuracies on.
        opset: 21 to 23.
        runtimes: that check and measure the file; all that are installed unless given.
        timed_batches: batch sizes at which the file races the float network; none: no times.

    Raises:
        ValueError: the network cannot be written, or a check fails; the sentence names the layer.
    """
    check_choice("profile", profile, PROFILES)
    check_range("opset", opset, least=OPSETS[0], most=OPSETS[-1])
    quantized = _in_profile(_loaded(model, network), profile, calibration, progress)
    traced = trace(quantized, example, opset)
    written = write_graph(traced, RUNTIMES[profile])
    images = example[:_PARITY_IMAGES]
    codes = reference_codes(quantized, images, traced.activations)
    chosen = available() if runtimes is None else list(runtimes)
    found = _checked_layers(traced, written, chosen, images, codes)
    data_bytes = written.model.SerializeToString()
    float_bytes = float_model(quantized, example, opset)
    rounds = OnnxRuntime() if profile == "exact" else None  # biases, to integers in some layers
    truth = (data, reference_classes(quantized, data, progress)) if data else ((), [])
    same = (written, data_bytes, float_bytes)
    records = [
        measure(one, *same, found[one.name], *truth, timed_batches, images, progress, must_agree=one != rounds)
        for one in chosen
    ]
    sizes, layers = (len(data_bytes), len(float_bytes)), _layers(traced, written)
    deployed = Deployed(profile, opset, *sizes, layers, tuple(records), runtime_versions())
    _write(Path(path), data_bytes, deployed)
    for record in records:
        _warn(record, profile)
    return deployed


def _write(path: Path, data: bytes, deployed: Deployed) -> None:
    """The file, and what was found of it beside it."""
    write_whole(path, data)
    summary = {"schema": DEPLOYED_SCHEMA, **to_dict(deployed)}
    write_whole(path.with_name("deploy.json"), json.dumps(summary, indent=1).encode())


def _checked_layers(
    traced: Any, written: Any, runtimes: Sequence[Runtime], images: Tensor, codes: Any
) -> dict[str, Any]:
    """Runtime → parity of every layer, ONNX Runtime without optimisations too. Raises ValueError for a wrong one."""
    check_weight_codes(written.model, traced.weights, written.weights)
    plain = OnnxRuntime(optimized=False)
    found = {one.name: layer_parity(written, one, images.cpu().numpy(), codes) for one in [plain, *runtimes]}
    bits = {key: grid.bits for key, grid in traced.activations.items()}
    refuse_wrong_layers(found[plain.name], plain.name, bits=bits)
    for one in runtimes:
        if one != OnnxRuntime():  # rounds biases to whole steps, so codes may differ by more than rounding
            refuse_wrong_layers(found[one.name], one.name, most=_MOST_IN_RUNTIMES, bits=bits)
    return found


def float_model(model: nn.Module, example: Tensor, opset: int) -> bytes:
    """The network without quantisers, written the same way: what a deployed file is compared with."""
    return write_graph(trace(model, example, opset, quantized=False)).model.SerializeToString()


def _loaded(model: nn.Module | str | Path, network: nn.Module | None) -> nn.Module:
    if not isinstance(model, nn.Module):
        if network is None:
            raise ValueError(f"network=None: {model} holds no architecture, give the float network it was made of")
        return load(model, network)
    if not isinstance(getattr(model, "quantization", None), Quantization):
        raise ValueError(
            f"{type(model).__name__} is not quantised: pass what hawq.quantize, hawq.finetune or hawq.load returned"
        )
    return model


def _in_profile(model: nn.Module, profile: str, calibration: Sequence[Tensor], progress: Progress) -> nn.Module:
    trained = hasattr(model, RESIDUALS)
    if profile == "exact" or trained:
        return model
    if not calibration:
        raise ValueError("calibration is empty: give batches of training inputs, profile=integer needs their ranges")
    prepared = add_residual_quantizers(copy.deepcopy(model).eval(), LSQ(), RESIDUAL_BITS)
    with progress.task("ranges of additions", sum(map(len, calibration))) as task:
        enable_residual_quantizers(prepared, calibration, task)
    return prepared


def _layers(traced: Traced, written: Written) -> tuple[LayerRecord, ...]:
    """Every convolution and linear operator of the file: what it holds, and why it is float where it is."""
    stored = {one.node: one for one in written.weights}
    records = []
    for node, layer in written.layers.items():
        grid, one = traced.activations.get(layer), stored.get(node)
        weight_bits = traced.weights[layer].bits if layer in traced.weights else None
        records.append(
            LayerRecord(
                name=node,
                weight_bits=weight_bits,
                activation_bits=None if grid is None else grid.bits,
                weight_storage="float32" if one is None else one.storage,
                activation_storage="float32" if grid is None or not grid.integer else grid.storage,
                why_float=_why_float(one is None, grid),
            )
        )
    return tuple(records)


def _why_float(weight: bool, grid: ActivationGrid | None) -> str:
    if weight:
        return "its weight is float, keeps large values, or has codes beyond 8 signed bits"
    if grid is None:
        return "the plan leaves its input float"
    if grid.keeps_large:
        return "its input keeps large values"
    return "" if grid.integer else "its input has half-integer codes"


def _warn(record: RuntimeRecord, profile: str) -> None:
    better = next(
        (other for other, runtime in RUNTIMES.items() if runtime == record.runtime != RUNTIMES[profile]), None
    )
    for batch, times in record.milliseconds.items():
        if times["speedup"] < 1:
            log.warning(
                "%s: slower than float at batch %s (%.2f times its speed); %s of %s layers run in integers%s",
                record.runtime, batch, times["speedup"], record.integer_layers, record.num_layers,
                f"; give deploy.profile={better}, which is written for it" if better else "",
            )  # fmt: skip
