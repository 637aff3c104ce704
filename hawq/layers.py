"""Layers that can be quantised: which they are, where their weight stands, what enters them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hawq.attention import can_open
from hawq.errors import UserError

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a call


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name → layer, in module order: convolutions, transposed ones, linear layers, plain attentions.

    A plain `nn.MultiheadAttention` is the layer of its `in_proj_weight`, beside its `out_proj`. One of another kind
    (own keys and values, biases for them) reads its weights in a way of its own, so it has no such layer.
    """
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    unreachable = {id(module.out_proj) for module in attentions if _is_closed(module)}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in unreachable
        and (isinstance(module, LAYERS) or can_open(module))
        and weight_of(module).is_floating_point()
    }


def _is_closed(module: nn.MultiheadAttention) -> bool:
    """Whether an attention runs PyTorch's forward and stays so."""
    return type(module).forward is nn.MultiheadAttention.forward and not can_open(module)


def weight_name(layer: nn.Module) -> str:
    """The attribute that holds the weight of a layer."""
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer: (out, in, ...), (in, out / groups, ...) where transposed, (3 out, in) of an attention."""
    weight: Tensor = getattr(layer, weight_name(layer))
    return weight


def weight_identity(layer: nn.Module) -> int:
    """The same for layers that share one weight; of a parametrised weight, which is a new tensor each time it is read,
    it is that of the tensor behind it.
    """
    name = weight_name(layer)
    if not parametrize.is_parametrized(layer, name):
        return id(getattr(layer, name))
    behind: Any = layer.parametrizations[name]  # type: ignore[union-attr, index]
    return id(behind.original if hasattr(behind, "original") else behind.original0)


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight along which output channels may have scales of their own.

    It is axis 1 of a transposed convolution, shared by its groups, and axis 0 where each output channel reads a single
    input channel of several (depthwise).
    """
    depthwise = isinstance(layer, TRANSPOSED) and layer.groups == layer.in_channels > 1
    return 1 if isinstance(layer, TRANSPOSED) and not depthwise else 0


def layer_inputs(layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The distinct tensors that enter a layer in a call: one, or query, key and value of an attention."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_inputs(layer, args, kwargs, note)
    return found


def map_inputs(
    layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], function: Callable[[Tensor], Tensor]
) -> Arguments:
    """The arguments of a call with `function` applied to what enters the layer, once to each distinct tensor.

    Arguments may be given by position or by name.
    """
    made: list[tuple[Tensor, Tensor]] = []

    def once(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        for seen, result in made:
            if seen is x:  # by id() a compiler would compile each step again: a new batch is a new object
                return result
        made.append((x, function(x)))
        return made[-1][1]

    count = 3 if isinstance(layer, nn.MultiheadAttention) else 1
    positional = tuple(once(x) if place < count else x for place, x in enumerate(args))
    if len(args) >= count:
        return positional, kwargs
    names = list(inspect.signature(layer.forward).parameters)[len(args) : count]
    return positional, {name: once(x) if name in names else x for name, x in kwargs.items()}


def refuse_computed_weights(model: nn.Module, names: Sequence[str]) -> None:
    """Raises UserError for a named layer whose weight is no parameter, with what makes it one again.

    Its gradient is not the loss's, and a quantiser would be overwritten at the next forward.
    """
    layers = dict(model.named_modules())
    for name in names:
        layer, weight = layers[name], weight_name(layers[name])
        if weight in layer._parameters and not parametrize.is_parametrized(layer, weight):
            continue
        raise UserError(
            f"{name}.{weight} is computed from other parameters: make it one with {_remedy(name, layer, weight)}"
        )


def _remedy(name: str, layer: nn.Module, weight: str) -> str:
    """The call that replaces a computed weight by its value."""
    module = f"model.get_submodule({name!r})"
    hooks = {type(hook).__name__ for hook in layer._forward_pre_hooks.values()}
    if parametrize.is_parametrized(layer, weight):
        return f'torch.nn.utils.parametrize.remove_parametrizations({module}, "{weight}")'
    if any(isinstance(hook, prune.BasePruningMethod) for hook in layer._forward_pre_hooks.values()):
        return f'torch.nn.utils.prune.remove({module}, "{weight}")'
    if "SpectralNorm" in hooks:
        return f'torch.nn.utils.remove_spectral_norm({module}, "{weight}")'
    if "WeightNorm" in hooks:
        return f'torch.nn.utils.remove_weight_norm({module}, "{weight}")'
    return "torch.nn.Parameter, computed once"
