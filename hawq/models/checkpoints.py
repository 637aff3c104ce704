"""Checkpoint files: read safely, renamed, checked, and loaded with their normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.models.publishers import Publication
from hawq.models.state_dicts import check_values, find_state_dict, in_precision, unwrap
from hawq.records import Normalization

if TYPE_CHECKING:
    from torch import Tensor, nn

_NORMALIZATION = "hawq.normalization"  # key in the metadata of a safetensors file


@dataclass(frozen=True)
class Checkpoint:
    """Weights by our names, and the normalisation they were trained with."""

    state: dict[str, Tensor]
    normalization: Normalization


def read_checkpoint(path: Path, given: Normalization | None, publication: Publication | None = None) -> Checkpoint:
    """Weights and normalisation of a checkpoint file, on the CPU, whatever network they are for.

    The normalisation comes from the file (one that this package wrote) or from its publication; for any other file it
    must be given.

    Args:
        path: a state dict as `torch.save` or safetensors wrote it.
        given: normalisation that the user states, or None; it may not contradict the file.
        publication: names and normalisation of the publisher, or None for our names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict, names that are not the publication's, or a normalisation that is unknown or
            contradicts the file.
    """
    state, own = _read(path, None, publication)
    return Checkpoint(state, _agree(path, own, given))


def load_checkpoint(
    network: nn.Module, path: Path, given: Normalization | None, publication: Publication | None = None
) -> Normalization:
    """Loads a checkpoint file into a network, all of it by name, and returns the normalisation it was trained with.

    Half, bfloat16 and float64 weights are converted to the network's precision.

    Args:
        network: what the weights are for.
        path, given, publication: as for `read_checkpoint`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict; other names or shapes; NaN, infinite, whole or complex numbers or negative
            variances, by the tensors' names; or, last, a normalisation that is unknown or contradicts the file.
    """
    import torch

    from hawq.weights import check_names, load_strictly

    origin = f"checkpoint={path}"
    expected = network.state_dict()
    state, own = _read(path, expected, publication)
    rebuilt = {name for name, _ in network.named_buffers()} - expected.keys()  # older releases stored these
    state = {name: tensor for name, tensor in state.items() if name not in rebuilt}
    shapes = {name: torch.empty(x.shape, dtype=_dtype(name, x, expected), device="meta") for name, x in state.items()}
    check_names(network, shapes, origin)
    check_values(state, expected, origin)
    load_strictly(network, in_precision(state, expected), origin)
    return _agree(path, own, given)


def _dtype(name: str, tensor: Tensor, expected: Mapping[str, Tensor]) -> Any:
    """The type that a tensor is to have; what it has is judged after all names."""
    return expected[name].dtype if name in expected else tensor.dtype


def write_checkpoint(model: nn.Module, normalization: Normalization) -> bytes:
    """The content of a safetensors file with the weights of a float network and its normalisation."""
    from safetensors.torch import save as to_safetensors

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {"mean": normalization.mean, "std": normalization.std}
    return to_safetensors(state, {_NORMALIZATION: json.dumps(about)})


def _read(
    path: Path, expected: Mapping[str, Tensor] | None, publication: Publication | None
) -> tuple[dict[str, Tensor], Normalization | None]:
    """The tensors of a file by our names, and the normalisation that it or its publication states."""
    origin = f"checkpoint={path}"
    if not path.is_file():
        raise FileNotFoundError(f"{origin} does not exist: give the path of a weights file")
    if path.suffix.lower() == ".safetensors":
        state, own = _read_safetensors(path, origin)
    else:
        state, own = find_state_dict(_read_torch(path, origin), origin), None
    if own is None:  # else it is a file of this package, which has no wrappers
        theirs = expected if expected is None or publication is None else publication.names_of(expected)
        state = unwrap(state, theirs, origin)
    if publication is None:
        return state, own
    return publication.rename(state, origin), own or publication.normalization


def _read_safetensors(path: Path, origin: str) -> tuple[dict[str, Tensor], Normalization | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_NORMALIZATION)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{origin} is not a safetensors file, or is damaged: {error}") from error
    return state, _stated(about, origin) if about else None


def _stated(text: str, origin: str) -> Normalization:
    """The normalisation in the metadata of a file."""
    try:
        own = json.loads(text)
        mean, std = (tuple(float(value) for value in own[key]) for key in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{origin} states a normalisation that cannot be read: {text[:80]!r}") from error
    if not all(map(isfinite, (*mean, *std))) or min(std, default=0) <= 0 or len(mean) != len(std):
        raise ValueError(f"{origin} states mean {list(mean)} and std {list(std)}, which cannot be: give another file")
    return Normalization(mean, std)


def _read_torch(path: Path, origin: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of a file in another format raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{origin} is not a file of plain weights ({reason}): give a state dict or .safetensors"
        ) from error


def _agree(path: Path, own: Normalization | None, given: Normalization | None) -> Normalization:
    if own is None and given is None:
        raise ValueError(
            f"checkpoint={path} does not say how its inputs were normalised: give source, or mean=[r,g,b] "
            "and std=[r,g,b], as it was trained"
        )
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"checkpoint={path} was trained with mean {list(own.mean)} and std {list(own.std)}, but mean="
            f"{list(given.mean)} std={list(given.std)} was given: leave mean and std out"
        )
    return own or given  # type: ignore[return-value]
