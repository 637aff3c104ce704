"""Checkpoint files: read safely, with their weights renamed and their normalisation known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.models.publishers import IMAGENET, Publication
from hawq.records import Normalization

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Checkpoint:
    """Weights by our names, and the normalisation they were trained with."""

    state: dict[str, Tensor]
    normalization: Normalization


@dataclass(frozen=True)
class _Known:
    """A published file, recognised by its content."""

    rename: Callable[[str], str]
    normalization: Normalization


_CIFAR_PYHESSIAN = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

_CIFAR_APOT = Normalization((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))

_KNOWN_BY_SHA256 = {
    # akamaster/pytorch_resnet_cifar10, pretrained_models/resnet20-12fca82f.th: option A, head `linear`
    "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8": _Known(
        lambda name: name.replace("linear.", "fc."), IMAGENET
    ),
    # amirgholami/PyHessian, checkpoints/net.pkl: option B
    "540b6fa4571068396e1e95c9159b14449dc2d18fa120476b209834b38214a719": _Known(lambda name: name, _CIFAR_PYHESSIAN),
    # yanghr/BSQ, checkpoints/cifar10/resnet-20/model_best.pth.tar: option B
    "0bce40d695b9fc6c75666b442e70a690f339c379abbbd905e673beefa55d552b": _Known(lambda name: name, _CIFAR_PYHESSIAN),
    # yhhhli/APoT_Quantization, CIFAR10/result/res20_32bit/model_best.pth.tar: option B
    "f2d107bcd63ce2fcfb9b6f43f367dc80003e395b378111fedc7f9244fd90bfc6": _Known(lambda name: name, _CIFAR_APOT),
}


def read_checkpoint(path: Path, given: Normalization | None, publication: Publication | None = None) -> Checkpoint:
    """Weights and normalisation of a checkpoint file, on the CPU.

    The normalisation comes from the file (one that this package wrote, or a published one recognised by its SHA-256)
    or from its publication; for any other file it must be given.

    Args:
        path: a state dict as `torch.save` or safetensors wrote it.
        given: normalisation that the user states, or None; it may not contradict the file.
        publication: names and normalisation of the publisher, or None for our names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict, names that are not the publication's, or a normalisation that is unknown or
            contradicts the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={path} does not exist: give the path of a weights file")
    if path.suffix == ".safetensors":
        state, own = _read_safetensors(path)
    else:
        known = _KNOWN_BY_SHA256.get(hashlib.sha256(path.read_bytes()).hexdigest())
        state = {_without_module(name): tensor for name, tensor in _read_torch(path).items()}
        own = known.normalization if known else None
        if known:
            state = {known.rename(name): tensor for name, tensor in state.items()}
    if publication is not None:
        state, own = publication.rename(state, f"checkpoint={path}"), own or publication.normalization
    return Checkpoint(state, _agree(path, own, given))


def write_checkpoint(model: nn.Module, normalization: Normalization) -> bytes:
    """The content of a safetensors file with the weights of a float network and its normalisation."""
    from safetensors.torch import save as to_safetensors

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {"mean": normalization.mean, "std": normalization.std}
    return to_safetensors(state, {"hawq.normalization": json.dumps(about)})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("hawq.normalization")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"checkpoint={path} is not a safetensors file, or is damaged: {error}") from error
    own = json.loads(about) if about else None
    return state, Normalization(tuple(own["mean"]), tuple(own["std"])) if own else None


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of a file in another format raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"checkpoint={path} is not a file of plain weights ({reason}): give a state dict or .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"checkpoint={path} holds no state dict: give a dictionary of name → tensor")
    return dict(content)


def _without_module(name: str) -> str:
    """DataParallel puts `module.` before every name."""
    return name.removeprefix("module.")


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
