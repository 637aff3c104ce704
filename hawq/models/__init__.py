"""Networks by name, and their weights."""

from hawq.models import resnet_cifar  # registers the CIFAR ResNets with timm
from hawq.models.checkpoints import load_strictly, read_checkpoint, write_checkpoint
from hawq.models.source import FloatModel, ModelSource

__all__ = ["FloatModel", "ModelSource", "load_strictly", "read_checkpoint", "resnet_cifar", "write_checkpoint"]
