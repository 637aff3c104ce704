"""Runtimes for ONNX files: results, kernels and times, on one CPU thread."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray]
Session = Callable[[Feeds], list[np.ndarray]]

_PRODUCTS = ("Convolution", "MatMul", "FullyConnected", "Deconvolution", "GroupConvolution")
_IN_INTEGERS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger")


@dataclass(frozen=True)
class Kernel:
    """What computed one layer: the runtime's name for it, whether in integers, its share of the time."""

    name: str
    integer: bool
    share: float


class Runtime(Protocol):
    """Runs models."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def open(self, model: bytes) -> Session:
        """A function from named inputs to the model's outputs, in order."""
        ...

    def kernels(self, model: bytes, feeds: Feeds, layers: Iterable[str]) -> tuple[dict[str, Kernel], dict[str, int]]:
        """Layer → its kernel, and how many of each other kind of kernel ran."""
        ...


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with all of its optimisations, or none."""

    optimized: bool = True

    @property
    def name(self) -> str:
        """What results call it."""
        return "onnxruntime" if self.optimized else "onnxruntime without optimisations"

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimized else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return options

    def open(self, model: bytes) -> Session:
        """A function from named inputs to the model's outputs, in order."""
        import onnxruntime

        session = onnxruntime.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, dict(feeds))

    def kernels(self, model: bytes, feeds: Feeds, layers: Iterable[str]) -> tuple[dict[str, Kernel], dict[str, int]]:
        """Layer → its kernel, and how many of each other kind of kernel ran (its profile of one run)."""
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text())
        ran = [
            (re.sub(r"(_token_\d+)?_kernel_time$", "", event["name"]), event["args"]["op_name"], event["dur"])
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ]
        return _by_layer([(name, kind, kind in _IN_INTEGERS, time) for name, kind, time in ran], set(layers))


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on a CPU in float32: its default precision computes in bfloat16 where the CPU can, without a word."""

    @property
    def name(self) -> str:
        """What results call it."""
        return "openvino"

    def _compile(self, model: bytes, **more: Any) -> Any:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, **more}
        return core.compile_model(core.read_model(model), "CPU", settings)

    def open(self, model: bytes) -> Session:
        """A function from named inputs to the model's outputs, in order."""
        compiled = self._compile(model)
        request = compiled.create_infer_request()

        def run(feeds: Feeds) -> list[np.ndarray]:
            found = request.infer(dict(feeds))
            return [found[output].copy() for output in compiled.outputs]

        return run

    def kernels(self, model: bytes, feeds: Feeds, layers: Iterable[str]) -> tuple[dict[str, Kernel], dict[str, int]]:
        """Layer → its kernel, and how many of each other kind of kernel ran (`exec_type` of one run)."""
        compiled = self._compile(model, PERF_COUNT=True)
        nodes = [
            (node.get_friendly_name(), str(info["layerType"].value), str(info["originalLayersNames"].value).split(","))
            for node in compiled.get_runtime_model().get_ordered_ops()
            for info in [node.get_rt_info()]
        ]
        products = {name: originals for name, kind, originals in nodes if kind.startswith(_PRODUCTS)}
        owner = _owners(products, list(layers))
        request = compiled.create_infer_request()
        request.infer(dict(feeds))
        ran = [
            (
                owner.get(one.node_name, ""),
                f"{one.node_type} {one.exec_type}",
                _is_int8(one),
                one.real_time.microseconds,
            )
            for one in request.profiling_info
            if "EXECUTED" in str(one.status)
        ]
        return _by_layer(ran, set(layers))  # type: ignore[arg-type]


def _owners(products: Mapping[str, Sequence[str]], layers: Sequence[str]) -> dict[str, str]:
    """OpenVINO's name of a product → the layer that it computes.

    Args:
        products: name → names of what it was made of, one of them that of the layer, or this with "/" and a word more.
            Where OpenVINO lost it, and as many layers are left as products, they belong together in order.
        layers: in the order of the graph, as the products are.
    """
    wanted = set(layers)
    found = {
        name: next((part for one in originals for part in (one, one.split("/")[0]) if part in wanted), "")
        for name, originals in products.items()
    }
    left = [layer for layer in layers if layer not in found.values()]
    lost = [name for name, layer in found.items() if not layer]
    return found | dict(zip(lost, left, strict=True)) if len(left) == len(lost) else found


def _is_int8(one: Any) -> bool:
    return bool(re.search(r"_[iu]8$", str(one.exec_type).lower()))


def _by_layer(
    ran: Sequence[tuple[str, str, bool, float]], layers: set[str]
) -> tuple[dict[str, Kernel], dict[str, int]]:
    total = sum(time for *_, time in ran) or 1.0
    kernels: dict[str, Kernel] = {}
    others: dict[str, int] = {}
    for name, kind, integer, time in ran:
        if name in layers and (name not in kernels or integer):
            kernels[name] = Kernel(kind, integer, round(time / total, 4))
        elif name not in layers:
            others[kind] = others.get(kind, 0) + 1
    return kernels, others


def available() -> list[Runtime]:
    """ONNX Runtime as it comes and without optimisations, then OpenVINO where it is installed."""
    found: list[Runtime] = [OnnxRuntime(), OnnxRuntime(optimized=False)]
    return [*found, OpenVino()] if find_spec("openvino") else found


def runtime_versions() -> dict[str, str]:
    """Package → version, of everything that the file was written and run with."""
    packages = ("torch", "onnx", "onnxruntime", "openvino")
    return {package: version(package) for package in packages if find_spec(package)}


def milliseconds(sessions: Sequence[Session], feeds: Feeds, seconds: float) -> list[float]:
    """Least time of one run of each session: they take turns for `seconds` each, so that all see the same machine."""
    for session in sessions:
        session(feeds)
    least, end = [float("inf")] * len(sessions), perf_counter() + seconds * len(sessions)
    while perf_counter() < end:
        for place, session in enumerate(sessions):
            start = perf_counter()
            session(feeds)
            least[place] = min(least[place], perf_counter() - start)
    return [1e3 * time for time in least]
