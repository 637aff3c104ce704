"""Finding blocks in any network: which layers share a bit-width, and what they cost."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from hawq.errors import UserError
from hawq.layers import LAYERS, quantizable_layers, weight_identity, weight_of
from hawq.records import Block
from hawq.tracing import LayerTrace, trace_layers
from hawq.unquantized import float_share, unquantized

_LOG = logging.getLogger(__name__)
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
        model: any module with convolutions, transposed convolutions, linear layers or attentions.
        example: (N, ...) input; when given, one forward pass fills in MACs and activation counts, and layers that it
            does not call are left out, named by a warning of the log: they stay float.
        granularity: "block" takes the units that a network of timm names itself (`group_matcher`), and groups all
            other layers by the module tree: containers are opened, any other module is one block. "layer" makes every
            layer a block, "network" a single block of all. A list of regular expressions groups the layers whose
            qualified name starts with the same match of one expression; layers that none matches stay single.

    Raises:
        ValueError: nothing to quantise, a bad granularity, or one weight shared by two blocks.
    """
    layers = quantizable_layers(model)
    if "" in layers:
        raise ValueError("the model is itself one layer, without a name: wrap it in torch.nn.Sequential")
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer; there is nothing to quantise")
    _refuse_missing_weights(layers)
    owners = _group(model, layers, granularity)
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(owners[layer], []).append(layer)
    blocks = tuple(_make_block(name, members, layers) for name, members in groups.items())
    blocks = blocks if example is None else trace_blocks(model, blocks, example)
    _refuse_weights_shared_between(blocks, layers)
    return blocks


def own_blocks(model: nn.Module) -> dict[str, str]:
    """Layer → name of the block that `find_blocks` puts it into by the network's structure (granularity "block")."""
    return dict(_owners(model, "")) | _matched(quantizable_layers(model), _own_patterns(model))


def block_layers(model: nn.Module, block: Block) -> list[nn.Module]:
    """The layers of a block that hold its distinct weights, in the block's order."""
    layers = dict(model.named_modules())
    unique: dict[int, nn.Module] = {}
    for name in block.layers:
        unique.setdefault(weight_identity(layers[name]), layers[name])
    return list(unique.values())


def trace_blocks(model: nn.Module, blocks: Sequence[Block], example: Tensor) -> tuple[Block, ...]:
    """The blocks with `macs`, `num_activations` and `image_layers` of one forward of `example` (N, ...).

    MACs of a layer = its weights × output positions (input positions where transposed), per sample; a layer that runs
    twice counts twice. Layers that the forward does not call are left out, as are blocks of such layers alone. The log
    says which layers these are, and what else stays float. Raises UserError where no layer is called.
    """
    traces = trace_layers(model, [layer for block in blocks for layer in block.layers], example)
    idle = [name for name, trace in traces.items() if not trace.called]
    if len(idle) == len(traces):
        raise UserError(
            f"a forward of the example calls none of the layers {', '.join(idle)}: nothing can be quantised"
        )
    if idle:
        _LOG.warning("a forward of the example never calls %s: these layers stay float", ", ".join(idle))
    traced = (_traced(model, block, traces) for block in blocks)
    kept = tuple(block for block in traced if block.layers)
    parts = unquantized(model, kept, example)
    if parts:
        _LOG.log(*float_share(kept, parts))
    return kept


def _traced(model: nn.Module, block: Block, traces: Mapping[str, LayerTrace]) -> Block:
    called = tuple(layer for layer in block.layers if traces[layer].called)
    if called != block.layers:
        kept = _make_block(block.name, called, dict(model.named_modules()))
        block = replace(block, layers=kept.layers, num_weights=kept.num_weights)
    return replace(
        block,
        macs=sum(traces[layer].macs for layer in called),
        num_activations=sum(traces[layer].num_activations for layer in called),
        image_layers=tuple(layer for layer in called if traces[layer].reads_image),
    )


def _group(model: nn.Module, layers: dict[str, nn.Module], granularity: str | Sequence[str]) -> dict[str, str]:
    """Layer → name of its block."""
    singles = {name: name for name in layers}
    if granularity == "layer":
        return singles
    if granularity == "network":
        return dict.fromkeys(layers, "network")
    if granularity == "block":
        return own_blocks(model)
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
        if isinstance(child, LAYERS):
            yield name, name
        elif isinstance(child, _TRANSPARENT) or _is_stage(child):
            yield from _owners(child, f"{name}.")
        else:
            for layer in quantizable_layers(child):
                yield f"{name}.{layer}".removesuffix("."), name


def _is_stage(module: nn.Module) -> bool:
    """A stage holds a container with at least two compound members (say, residual units): it is opened, not kept."""
    return any(
        isinstance(child, _TRANSPARENT) and sum(_is_compound(member) for member in child.children()) >= 2
        for child in module.children()
    )


def _is_compound(module: nn.Module) -> bool:
    return not isinstance(module, LAYERS) and bool(quantizable_layers(module))


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


def _make_block(name: str, members: Sequence[str], layers: Mapping[str, nn.Module]) -> Block:
    weights = {weight_identity(layers[layer]): weight_of(layers[layer]).numel() for layer in members}
    return Block(name=name, layers=tuple(members), num_weights=sum(weights.values()))


def _refuse_missing_weights(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if isinstance(getattr(layer, "weight", None), nn.parameter.UninitializedParameter):
            raise UserError(f"{name} is lazy and has no weight yet: run one forward of the model first")


def _refuse_weights_shared_between(blocks: Sequence[Block], layers: Mapping[str, nn.Module]) -> None:
    seen: dict[int, str] = {}
    for block in blocks:
        for layer in block.layers:
            other = seen.setdefault(weight_identity(layers[layer]), block.name)
            if other != block.name:
                raise ValueError(
                    f"blocks {other!r} and {block.name!r} share one weight; "
                    "put their layers in one block with a list of patterns as granularity"
                )
