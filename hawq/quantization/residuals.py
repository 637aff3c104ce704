"""8-bit quantisers on what enters an addition, a concatenation or a pooling, so that these too are integers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from hawq.modes import eval_mode
from hawq.progress import SILENT, Task, counted
from hawq.quantization.fake_quantize import FakeQuantizer

RESIDUALS = "residual_quantizers"
"""Where a network keeps these quantisers."""

_VALUES = 200_000  # of one tensor that its range is chosen from

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_JOINS = (torch.cat, torch.concat, torch.concatenate)
_POOLINGS = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.mean, "mean"),
)
_POOLING_MODULES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_MOVES = (operator.getitem, F.pad, torch.flatten, "flatten", "view", "reshape", "contiguous")
"""What leaves values as they are, or adds zeros: its result lies on the grid of its input."""


class _Tracer(fx.Tracer):
    """Sees PyTorch's own layers, and all that quantisers hang on, as one step each."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        quantized = parametrize.is_parametrized(m) or hasattr(m, "input_quantizer") or isinstance(m, FakeQuantizer)
        return quantized or super().is_leaf_module(m, qualified_name)


class ResidualNetwork(fx.GraphModule):
    """A network as a list of steps, with quantisers between them; copies keep these and what it carries."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ResidualNetwork:
        copied: ResidualNetwork = super().__deepcopy__(memo)  # type: ignore[assignment]
        made = dict(copied.get_submodule(RESIDUALS).named_children())
        setattr(copied, RESIDUALS, nn.ModuleDict(made))
        for name in ("residual_places", "quantization"):
            if hasattr(self, name):
                setattr(copied, name, getattr(self, name))
        return copied.train(self.training)


def residual_places(model: nn.Module) -> dict[str, str]:
    """Step of the forward pass → name of its quantiser, of every step whose result enters an addition, a concatenation
    or a pooling, or is the sum that several steps read. A step that only moves values shares the quantiser before it.

    Raises ValueError when the forward pass depends on values, so that its steps cannot be listed.
    """
    graph = _trace(model)
    modules = dict(model.named_modules())
    places: dict[str, str] = {}
    for node in graph.nodes:
        for source in _entering(node, modules):
            _place(source, places, modules)
        result = _shared_result(node, modules)
        if result is not None:
            _place(result, places, modules)
    return places


def attach_residual_quantizers(
    model: nn.Module, places: Mapping[str, str], made: Mapping[str, FakeQuantizer]
) -> nn.Module:
    """The network with these quantisers after the steps that `places` names; it shares its layers with `model`.

    They are `residual_quantizers` of the result. Raises ValueError where the network has no such step.
    """
    graph = _trace(model)
    nodes = {node.name: node for node in graph.nodes}
    unknown = sorted(places.keys() - nodes.keys())
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no steps {unknown}: take the model class, timm and PyTorch that the "
            "quantised network was made with"
        )
    model.add_module(RESIDUALS, nn.ModuleDict(dict(made)))
    for name, key in places.items():
        node = nodes[name]
        with graph.inserting_after(node):
            quantized = graph.call_module(f"{RESIDUALS}.{key}", (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user, own=quantized: user is not own)
    traced = ResidualNetwork(model, graph, type(model).__name__)
    setattr(traced, RESIDUALS, model.get_submodule(RESIDUALS))  # a graph module makes plain modules of containers
    traced.residual_places = dict(places)  # type: ignore[assignment]
    if hasattr(model, "quantization"):
        traced.quantization = model.quantization
    return traced


def add_residual_quantizers(model: nn.Module, quantizer: Any, bits: int) -> nn.Module:
    """The network with new quantisers at all `residual_places`, still switched off; it shares its layers with `model`.

    Args:
        model: given up for the result.
        quantizer: makes them, as it makes those of layer inputs.
        bits: their bit-width.

    Raises:
        ValueError: as `residual_places`.
    """
    places = residual_places(model)
    made = {key: quantizer.activation(bits) for key in dict.fromkeys(places.values())}
    device = next(model.parameters()).device
    return attach_residual_quantizers(model, places, {key: one.to(device) for key, one in made.items()})


@torch.no_grad()
def enable_residual_quantizers(model: nn.Module, calibration: Sequence[Tensor], task: Task = SILENT) -> None:
    """Chooses their ranges from batches of inputs (N, ...), and switches them on; those already on stay as they are.

    `task` is advanced by every sample.
    """
    off = [one for one in getattr(model, RESIDUALS, {}).values() if not one.enabled]
    seen: dict[FakeQuantizer, list[Tensor]] = {one: [] for one in off}
    share = _VALUES // max(len(calibration), 1)

    def collect(one: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].reshape(-1)
        step = max(flat.numel() // share, 1) | 1  # odd: even steps would keep to one channel of a few
        seen[one].append(flat[::step].clone())  # type: ignore[index]

    handles = [one.register_forward_pre_hook(collect) for one in off]
    try:
        with eval_mode(model):
            for inputs in counted(calibration if off else (), task):
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for one, values in seen.items():
        if values:
            one.initialise(torch.cat(values))


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the steps of {type(model).__name__} cannot be listed ({reason}): its additions stay float, give "
            "residuals=null or profile=exact"
        ) from error


def _entering(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """The tensors that enter a step, if it is an addition, a concatenation or a pooling."""
    if node.op == "call_module":
        return _nodes(node.args[:1]) if isinstance(modules[str(node.target)], _POOLING_MODULES) else []
    if node.op not in ("call_function", "call_method") or _is_size(node):
        return []
    if node.target in _POOLINGS:
        return _nodes(node.args[:1])
    if node.target in _JOINS:
        return _nodes(node.args[0] if node.args else node.kwargs["tensors"])
    if node.target in _ADDITIONS:
        entering = _nodes((*node.args, *node.kwargs.values()))
        return entering if len(entering) == 2 else []
    return []


def _shared_result(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The result of an addition, after its ReLU, if several steps read it: each would round it on its own otherwise."""
    if node.target not in _ADDITIONS or not _entering(node, modules):
        return None
    users = list(node.users)
    if len(users) == 1 and (users[0].target in _RELUS or isinstance(modules.get(str(users[0].target)), nn.ReLU)):
        node, users = users[0], list(users[0].users)
    return node if len(users) > 1 else None


def _nodes(arguments: Any) -> list[fx.Node]:
    """Those arguments that are computed tensors, neither constants nor parameters."""
    return [item for item in arguments if isinstance(item, fx.Node) and item.op != "get_attr" and not _is_size(item)]


def _is_size(node: fx.Node) -> bool:
    """Whether a step gives numbers of a shape instead of a tensor."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op == "call_function" and node.target is getattr and len(node.args) > 1:
        return node.args[1] in ("shape", "ndim", "device", "dtype")
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(_is_size(item) for item in inputs)


def _is_transparent(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a step gives in eval mode what it takes."""
    return node.op == "call_module" and isinstance(modules[str(node.target)], (nn.Identity, _DropoutNd))


def _place(node: fx.Node, places: dict[str, str], modules: Mapping[str, nn.Module]) -> str:
    """Puts a quantiser after a step; returns its name."""
    if _is_transparent(node, modules):
        return _place(node.all_input_nodes[0], places, modules)
    if node.name not in places:
        moves = node.op in ("call_function", "call_method") and node.target in _MOVES
        source = _nodes(node.args[:1]) if moves else []
        places[node.name] = _place(source[0], places, modules) if source else f"after_{node.name}"
    return places[node.name]
