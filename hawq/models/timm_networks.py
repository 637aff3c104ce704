"""Networks of timm's registry: building them, and what they say about their inputs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hawq.models.publishers import Publication
from hawq.models.registry import is_own, own_network
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import nn


def check_name(name: str) -> None:
    """Raises ValueError, with what is close, unless `name` is in timm's registry."""
    if is_own(name):
        return
    import timm

    from hawq.models import torchvision_networks

    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
    if name in torchvision_networks.names():
        hint = "torchvision has it: give source=torchvision too"
    raise ValueError(f"name={name!r} is not in timm's registry: {hint}")


def build(name: str, num_classes: int, *, pretrained: bool, size: int | None) -> tuple[nn.Module, Publication]:
    """A network of timm, random unless `pretrained`, and how it wants its inputs.

    Args:
        name: in timm's registry.
        num_classes: outputs.
        pretrained: download its weights.
        size: side in pixels that the user chose, or None for the network's own.

    Raises:
        ValueError: weights that cannot be downloaded, a size that the network cannot be built for, or a network for
            images that are not square.
    """
    if make := own_network(name):  # without timm, which takes two seconds to import
        own: Any = make(pretrained=pretrained, num_classes=num_classes)
        return own, _as_published(own.pretrained_cfg, fixed=False)
    import timm

    config: Any = timm.models.get_pretrained_cfg(name)
    fixed = bool(config and config.fixed_input_size)
    resized: dict[str, Any] = {"img_size": size} if fixed and size not in (None, config.input_size[-1]) else {}
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **resized)
    except Exception as error:  # whatever a constructor makes of a size it does not know
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if resized:
            own = config.input_size[-1]
            raise ValueError(
                f"input_size={size} is not possible with {name} ({reason}): give null, for {own}"
            ) from error
        if not pretrained or not isinstance(error, (OSError, RuntimeError)):
            raise
        raise ValueError(
            f"pretrained=true could not download the weights of {name} ({reason}): give checkpoint=path"
        ) from error
    return network, _publication(name, network, fixed)


def _publication(name: str, network: nn.Module, fixed: bool) -> Publication:
    """What a network of timm says about its own inputs."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"name={name!r} takes images of {height}×{width}: choose a network for square images")
    strict = getattr(getattr(network, "patch_embed", None), "strict_img_size", None)
    return _as_published(config, fixed=strict is True or (fixed and strict is None))


def _as_published(config: Mapping[str, Any], *, fixed: bool) -> Publication:
    """How inputs are prepared, in our words; `fixed` where the network takes no other size."""
    side = config["input_size"][-1]
    preprocessing = Preprocessing(side, config["crop_pct"], config["interpolation"], fixed_size=fixed)
    return Publication(Normalization(tuple(config["mean"]), tuple(config["std"])), preprocessing)
