"""Finding blocks in any network: which layers share a bit-width, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hawq.modes import eval_mode
from hawq.records import Block

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPARENT = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
GRANULARITIES = ("block", "layer", "network")


def find_blocks(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    granularity: str | Sequence[str] = "block",
) -> tuple[Block, ...]:
    """Blocks of a network in the order of its modules (HAWQ, 1905.03696: residual units, stem, classifier).

    Args:
        model: any module with convolution or linear layers.
        example: (N, ...) input; when given, one forward pass also fills in MACs and activation counts.
        granularity: "block" takes the units that a network of timm names itself (`group_matcher`), and groups all
            else by the module tree: containers are opened, any other module is one block. "layer" makes every layer
            a block, "network" all of them one. A list of regular expressions groups the layers whose qualified name
            starts with the same match of one expression; layers that none matches stay single.

    Raises:
        ValueError: nothing to quantise, a bad granularity, or one weight shared by two blocks.
    """
    layers = quantizable_layers(model)
    if "" in layers:
        raise ValueError("the model is itself one layer, without a name: wrap it in torch.nn.Sequential")
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer; there is nothing to quantise")
    owners = _group(model, layers, granularity)
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(owners[layer], []).append(layer)
    blocks = tuple(_make_block(name, members, layers) for name, members in groups.items())
    _refuse_weights_shared_between(blocks, layers)
    return blocks if example is None else trace_blocks(model, blocks, example)


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name → layer, for every convolution and linear layer, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QUANTIZABLE)}


@dataclass
class LayerTrace:
    """What one forward pass did in one layer, per sample."""

    macs: int = 0
    num_activations: int = 0
    reads_image: bool = False


def trace_blocks(model: nn.Module, blocks: Sequence[Block], example: Tensor) -> tuple[Block, ...]:
    """The same blocks with `macs`, `num_activations` and `image_layers` filled in from one forward of `example`.

    MACs of a layer = its weights × output positions, per sample; a layer that runs twice counts twice.
    """
    traces = trace_layers(model, [layer for block in blocks for layer in block.layers], example)
    return tuple(
        replace(
            block,
            macs=sum(traces[layer].macs for layer in block.layers),
            num_activations=sum(traces[layer].num_activations for layer in block.layers),
            image_layers=tuple(layer for layer in block.layers if traces[layer].reads_image),
        )
        for block in blocks
    )


def trace_layers(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, LayerTrace]:
    """Runs `example` (N, ...) once in eval mode, without gradients, and records each named layer."""
    traces = {name: LayerTrace() for name in names}
    layers = dict(model.named_modules())
    handles = [layers[name].register_forward_hook(_recorder(traces[name], example)) for name in names]
    try:
        with torch.no_grad(), eval_mode(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _recorder(trace: LayerTrace, example: Tensor) -> Callable[..., None]:
    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        batch = example.shape[0]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        trace.macs += output.numel() // weight.shape[0] * weight.numel() // batch
        if _storage(inputs[0]) == _storage(example) and inputs[0].numel() == example.numel():
            trace.reads_image = True
        else:
            trace.num_activations += inputs[0].numel() // batch

    return record


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor lies in; unlike an address it is there on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _group(model: nn.Module, layers: dict[str, nn.Module], granularity: str | Sequence[str]) -> dict[str, str]:
    """Layer → name of its block."""
    singles = {name: name for name in layers}
    if granularity == "layer":
        return singles
    if granularity == "network":
        return dict.fromkeys(layers, "network")
    if granularity == "block":
        return dict(_owners(model, "")) | _matched(layers, _own_patterns(model))
    if isinstance(granularity, str):
        raise ValueError(
            f"granularity {granularity!r} is not one of {', '.join(GRANULARITIES)} or a list of regular expressions"
        )
    _refuse_idle_patterns(granularity, layers)
    return singles | _matched(layers, granularity)


def _owners(module: nn.Module, prefix: str) -> Iterator[tuple[str, str]]:
    """(layer, block) pairs by the module tree: opens containers and stages, keeps any other module whole."""
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        if isinstance(child, QUANTIZABLE):
            yield name, name
        elif isinstance(child, _TRANSPARENT) or _is_stage(child):
            yield from _owners(child, f"{name}.")
        else:
            for layer in quantizable_layers(child):
                yield f"{name}.{layer}", name


def _is_stage(module: nn.Module) -> bool:
    """A stage holds a container with at least two compound members (say, residual units): it is opened, not kept."""
    return any(
        isinstance(child, _TRANSPARENT) and sum(_is_compound(member) for member in child.children()) >= 2
        for child in module.children()
    )


def _is_compound(module: nn.Module) -> bool:
    return not isinstance(module, QUANTIZABLE) and bool(quantizable_layers(module))


def _refuse_idle_patterns(patterns: Sequence[str], layers: dict[str, nn.Module]) -> None:
    for pattern in patterns:
        if all(_match(layer, pattern) is None for layer in layers):
            raise ValueError(f"granularity pattern {pattern!r} matches no layer; the layers are {', '.join(layers)}")


def _matched(layers: Iterable[str], patterns: Sequence[str]) -> dict[str, str]:
    """Layer → what the first fitting pattern matched of its name, for the layers that any pattern fits."""
    found = {layer: next(filter(None, (_match(layer, pattern) for pattern in patterns)), None) for layer in layers}
    return {layer: block for layer, block in found.items() if block}


def _own_patterns(model: nn.Module) -> list[str]:
    """The patterns by which a network of timm names its units, without its stem, whose layers stay single.

    `group_matcher` gives {group: pattern, or (pattern, …) pairs}. A few networks (Inception) group by a function
    instead, from which no names can be read.
    """
    matcher = getattr(model, "group_matcher", None)
    groups = matcher(coarse=False) if callable(matcher) else None
    if not isinstance(groups, Mapping):
        return []
    specs = [spec for group, spec in groups.items() if spec and not group.startswith("stem")]
    return [pattern for spec in specs for pattern in ([spec] if isinstance(spec, str) else [pair[0] for pair in spec])]


def _match(layer: str, pattern: str) -> str | None:
    try:
        match = re.match(pattern, layer)
    except re.error as error:
        raise ValueError(f"granularity pattern {pattern!r} is not a regular expression: {error}") from error
    return match.group().rstrip(".") if match and match.group() else None


def _make_block(name: str, members: Sequence[str], layers: dict[str, nn.Module]) -> Block:
    weights = {id(layers[layer].weight): layers[layer].weight.numel() for layer in members}  # type: ignore
    return Block(name=name, layers=tuple(members), num_weights=sum(weights.values()))  # type: ignore[arg-type]


def _refuse_weights_shared_between(blocks: Sequence[Block], layers: dict[str, nn.Module]) -> None:
    seen: dict[int, str] = {}
    for block in blocks:
        for layer in block.layers:
            other = seen.setdefault(id(layers[layer].weight), block.name)
            if other != block.name:
                raise ValueError(
                    f"blocks {other!r} and {block.name!r} share one weight; "
                    "put their layers in one block with a list of patterns as granularity"
                )
