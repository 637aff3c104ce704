"""Networks by name, and their weights. Importing this package adds our own networks to timm's registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hawq.models.registry import register_with_timm

if TYPE_CHECKING:
    from hawq.models.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
    from hawq.models.float_model import FloatModel
    from hawq.models.spec import ModelSpec

_HOMES = {
    "FloatModel": "float_model",
    "ModelSpec": "spec",
    "load_checkpoint": "checkpoints",
    "read_checkpoint": "checkpoints",
    "write_checkpoint": "checkpoints",
}

__all__ = ["FloatModel", "ModelSpec", "load_checkpoint", "read_checkpoint", "write_checkpoint"]

register_with_timm()


def __getattr__(name: str) -> Any:
    """Loads the module of a name when it is first used, so that `import hawq.models` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
