"""What our own networks need to stand in timm's registry beside timm's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def create(make: Callable[..., Network], pretrained: bool, options: dict[str, Any]) -> Network:
    """`make` with those of timm's `options` that it knows: num_classes and in_chans.

    Raises ValueError for `pretrained`, because these networks have no weights on timm's hub.
    """
    if pretrained:
        raise ValueError("this network has no weights to download: give model.checkpoint=path instead")
    return make(**{key: value for key, value in options.items() if key in ("num_classes", "in_chans")})
