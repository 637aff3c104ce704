"""Networks by name, and their weights. Importing this package adds our own networks to timm's registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hawq.lazy import lazy_names
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


__getattr__ = lazy_names(__name__, _HOMES)
