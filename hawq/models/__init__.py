"""Networks by name, and their weights."""

from hawq.models import resnet_cifar, squeezenext  # registers them with timm
from hawq.models.checkpoints import read_checkpoint, write_checkpoint
from hawq.models.source import FloatModel, ModelSource

__all__ = ["FloatModel", "ModelSource", "read_checkpoint", "resnet_cifar", "squeezenext", "write_checkpoint"]
