"""Our own networks in timm's registry, beside timm's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")

_DEPTHS = (20, 32, 44, 56)
OWN_NETWORKS: dict[str, tuple[str, ...]] = {
    "resnet_cifar": tuple(f"resnet{depth}{option}" for option in ("", "_projection") for depth in _DEPTHS),
    "squeezenext": ("squeezenext",),
}
"""Module of this package → the functions in it that build networks, called as timm calls its own."""

_REGISTRY = "timm.models"


def register_with_timm() -> None:
    """Adds our networks to timm's registry: now if timm is loaded, else as soon as anything imports it.

    timm takes seconds to import, and most uses of this package never need it.
    """
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _WhenTimmIsImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenTimmIsImported())


class _WhenTimmIsImported(MetaPathFinder):
    """Finds timm's models as Python would, and registers ours once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of `timm.models`, None for any other module."""
        if fullname != _REGISTRY:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    for module, names in OWN_NETWORKS.items():
        for name in names:
            sys.modules[_REGISTRY].register_model(getattr(import_module(f"hawq.models.{module}"), name))


def own_network(name: str) -> Callable[..., nn.Module] | None:
    """The function that builds our network of that name, found without timm; None for a name that is not ours."""
    home = next((module for module, names in OWN_NETWORKS.items() if name in names), None)
    return None if home is None else getattr(import_module(f"hawq.models.{home}"), name)


def is_own(name: str) -> bool:
    """Whether a network of that name is ours; imports nothing."""
    return any(name in names for names in OWN_NETWORKS.values())


def create(make: Callable[..., Network], pretrained: bool, options: dict[str, Any]) -> Network:
    """Calls `make` with those of timm's `options` that our networks have: num_classes and in_chans.

    Raises ValueError for `pretrained`, because these networks have no weights on timm's hub.
    """
    if pretrained:
        raise ValueError("this network has no weights to download: give checkpoint=path instead")
    return make(**{key: value for key, value in options.items() if key in ("num_classes", "in_chans")})
