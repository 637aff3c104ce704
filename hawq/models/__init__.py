"""Networks by name, and their weights."""

from hawq.models import resnet_cifar, squeezenext  # registers them with timm
from hawq.models.checkpoints import read_checkpoint, write_checkpoint
from hawq.models.source import FloatModel, ModelSpec

__all__ = ["FloatModel", "ModelSpec", "read_checkpoint", "resnet_cifar", "squeezenext", "write_checkpoint"]
