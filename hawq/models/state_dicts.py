"""The weights inside a checkpoint: the state dict among its entries, the prefixes of its names, and sound values."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hawq.errors import listed

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_MAIN = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "params", "weights")
_AVERAGED = (
    "state_dict_ema", "model_state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema"
)  # fmt: skip
_NEVER = ("optim", "sched", "scaler", "amp", "loss", "args", "config", "hparams", "hyper", "callbacks", "loops", "rng")
_DEPTH = 4  # of wrappers in wrappers

# What torch.compile, FSDP and activation checkpointing put anywhere into a name
_MARKERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What DataParallel, Lightning and the like put in front of every name
_WRAPPERS = (
    "module",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "base_model",
    "student",
    "ema",
    "inner",
    "wrapped",
)
_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel


def find_state_dict(content: Any, origin: str) -> dict[str, Tensor]:
    """The state dict in what `torch.load` returned: itself, or below one of the usual keys, also nested.

    Where a running average of the weights lies beside them, the weights are taken and the average is noted.

    Args:
        content: anything.
        origin: the beginning of messages, say "checkpoint=weights.pth".

    Raises:
        ValueError: no state dict, or several of which none is the usual one.
    """
    found = _search(content, origin, _DEPTH)
    if found is None:
        raise ValueError(f"{origin} holds no state dict: give a dictionary of name → tensor")
    return found


def _search(content: Any, origin: str, depth: int) -> dict[str, Tensor] | None:
    import torch

    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return None
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content)
    if depth == 0:
        return None
    usual = [key for key in (*_MAIN, *_AVERAGED) if key in content]
    others = [key for key in content if key not in usual and not any(part in key.lower() for part in _NEVER)]
    for keys in (usual, others):
        states = {key: state for key in keys if (state := _search(content[key], origin, depth - 1))}
        if states:
            return _choose(states, origin)
    return None


def _choose(states: Mapping[str, dict[str, Tensor]], origin: str) -> dict[str, Tensor]:
    """One of several state dicts, by key."""
    distinct: dict[str, dict[str, Tensor]] = {}
    for key, state in states.items():
        if not any(_same(state, other) for other in distinct.values()):
            distinct[key] = state
    plain = [key for key in distinct if key not in _AVERAGED]
    candidates = plain or list(distinct)
    if len(candidates) > 1:
        raise ValueError(
            f"{origin} holds several state dicts ({', '.join(candidates)}): store the one that is meant by itself, "
            f"torch.save(torch.load(path)[{candidates[0]!r}], 'weights.pth')"
        )
    (chosen,) = candidates
    if len(distinct) > 1:
        left = ", ".join(key for key in distinct if key != chosen)
        logger.warning("%s: the weights are taken from %s, not from %s beside it", origin, chosen, left)
    return distinct[chosen]


def _same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and tensor.shape == other[name].shape and bool((tensor == other[name]).all())
        for name, tensor in state.items()
    )


def unwrap(state: Mapping[str, Tensor], expected: Collection[str] | None, origin: str) -> dict[str, Tensor]:
    """The tensors without what wrappers put into their names, say `module.` or `_orig_mod.`, in any order.

    Args:
        state: name → tensor.
        expected: the names that the network needs, which decide what a wrapper is; None where they are not known: then
            only a usual wrapper that begins every name is one.
        origin: the beginning of messages, and of notes about tensors that lie beside the wrapped network.

    Raises:
        ValueError: several networks in one state dict.
    """
    names = {name: _without(name, _MARKERS) for name in state}
    if expected:
        plain = {name: _without(name, (*_MARKERS, "module")) for name in state}
        prefixes, covered = _best_prefixes(names.values(), expected)
        if covered < (fuller := _best_prefixes(plain.values(), expected))[1]:
            names, (prefixes, covered) = plain, fuller
        if 2 * covered >= len(expected):
            return _below(state, names, _choose_prefix(prefixes, origin), origin)
    while len(first := {name.split(".")[0] for name in names.values() if name not in _COUNTERS}) == 1:
        (wrapper,) = first
        if wrapper not in _WRAPPERS or any(name == wrapper for name in names.values()):
            break
        names = {old: new.removeprefix(f"{wrapper}.") for old, new in names.items() if new not in _COUNTERS}
    return {new: state[old] for old, new in names.items()}


def _without(name: str, parts: Collection[str]) -> str:
    """A name without those of its components that are among `parts`; its last one stays."""
    *modules, leaf = name.split(".")
    return ".".join([*(module for module in modules if module not in parts), leaf])


def _best_prefixes(names: Collection[str], expected: Collection[str]) -> tuple[list[str], int]:
    """The prefixes below which most of the expected names lie, mostly one, and how many these are."""
    wanted = set(expected)
    count: Counter[str] = Counter()
    for name in names:
        components = name.split(".")
        for start in range(len(components)):
            if ".".join(components[start:]) in wanted:
                count["".join(f"{part}." for part in components[:start])] += 1
    most = max(count.values(), default=0)
    return [prefix for prefix, number in count.items() if number == most], most


def _choose_prefix(prefixes: Sequence[str], origin: str) -> str:
    """The network that is meant, of several in one state dict: never the running average of another one."""
    if "" in prefixes:
        return ""
    plain = [prefix for prefix in prefixes if not any(word in prefix for word in ("ema", "average"))] or prefixes
    if len(plain) > 1:
        raise ValueError(
            f"{origin} holds several networks (below {', '.join(sorted(plain))}): store the one that is meant by itself"
        )
    return plain[0]


def _below(state: Mapping[str, Tensor], names: Mapping[str, str], prefix: str, origin: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it; the others are noted."""
    outside = sorted(old for old, new in names.items() if not new.startswith(prefix) and new not in _COUNTERS)
    if outside:
        logger.warning("%s: %s beside %s left out", origin, listed(outside), prefix.rstrip("."))
    return {new.removeprefix(prefix): state[old] for old, new in names.items() if new.startswith(prefix)}


def check_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Raises ValueError, naming the tensors, for values that no trained network has.

    These are: NaN and infinite values, negative variances, whole or complex numbers where fractions are needed, and
    tensors without stored values.

    Args:
        state: name → tensor as stored.
        expected: the tensors of the network they are for, by name.
        origin: the beginning of messages.
    """
    faults: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if name in expected and (fault := _fault(name, tensor, expected[name])):
            faults.setdefault(fault, []).append(name)
    if faults:
        told = "; ".join(f"{listed(names)} {fault}" for fault, names in faults.items())
        raise ValueError(
            f"{origin} is damaged or was not meant as weights: {told}; give a file of trained float weights"
        )


def _fault(name: str, tensor: Tensor, wanted: Tensor) -> str:
    """What is wrong with the values of a tensor; empty where nothing is."""
    import torch

    if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return "is not a dense tensor"
    if not wanted.is_floating_point():
        return "" if tensor.dtype == wanted.dtype or not tensor.dtype.is_complex else "holds complex numbers"
    if not tensor.is_floating_point():
        return f"holds {'complex' if tensor.is_complex() else 'whole'} numbers ({str(tensor.dtype).split('.')[-1]})"
    values = tensor.to(torch.float32)
    if values.isnan().any():
        return "holds NaN"
    if values.isinf().any():
        too_large = tensor.dtype == torch.float64 and not tensor.isinf().any()
        return "holds values too large for float32" if too_large else "holds infinite values"
    if name.endswith("running_var") and (values < 0).any():
        return "holds negative variances"
    return ""


def in_precision(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the network's precision: half, bfloat16 and float64 weights, and batch counters of any type."""
    return {
        name: tensor.to(expected[name].dtype)
        if name in expected and _converts(name, tensor, expected[name])
        else tensor
        for name, tensor in state.items()
    }


def _converts(name: str, tensor: Tensor, wanted: Tensor) -> bool:
    from hawq.weights import COUNTER

    counts = name.rpartition(".")[2] == COUNTER and not tensor.is_complex()
    return counts or (wanted.is_floating_point() and tensor.is_floating_point())
