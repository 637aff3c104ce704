"""CIFAR ResNets (He et al., 1512.03385, §4.2): 3×3 stem, three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from hawq.models.publishers import IMAGENET
from hawq.models.registry import create

__all__ = [
    "CifarResNet",
    "resnet20",
    "resnet20_projection",
    "resnet32",
    "resnet32_projection",
    "resnet44",
    "resnet44_projection",
    "resnet56",
    "resnet56_projection",
]


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels are zero; no parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, new_channels // 2, new_channels - new_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + new, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], self.padding)


class ResidualUnit(nn.Module):
    """Two 3×3 convolutions in parallel with a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 and option == "A":
            self.downsample = PadShortcut(channels - in_channels)
        elif stride != 1:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers for 32×32 images (any size ≥ 8 works).

    Args:
        units: residual units in each stage (3 for ResNet20).
        option: shortcut where the size changes, "A" (zero padding) or "B" (1×1 convolution).
        num_classes: outputs.
        in_chans: image channels.
    """

    pretrained_cfg: ClassVar = {  # what timm asks a network for: how its inputs are prepared
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET.mean,
        "std": IMAGENET.std,
    }

    def __init__(self, units: int, option: str, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, units, option)
        self.layer2 = _stage(16, 32, 2, units, option)
        self.layer3 = _stage(32, 64, 2, units, option)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) → logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))  # (N, classes)
        return logits


def _stage(in_channels: int, channels: int, stride: int, units: int, option: str) -> nn.Sequential:
    first = ResidualUnit(in_channels, channels, stride, option)
    return nn.Sequential(first, *[ResidualUnit(channels, channels, 1, option) for _ in range(units - 1)])


# timm's registry calls these by name and passes `pretrained` and whatever the user gave.


def resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet20 with parameter-free shortcuts (option A), the network of HAWQ's table 1."""
    return _create(3, "A", pretrained, kwargs)


def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet32, option A."""
    return _create(5, "A", pretrained, kwargs)


def resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet44, option A."""
    return _create(7, "A", pretrained, kwargs)


def resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet56, option A."""
    return _create(9, "A", pretrained, kwargs)


def resnet20_projection(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet20 with 1×1 convolutions as shortcuts (option B)."""
    return _create(3, "B", pretrained, kwargs)


def resnet32_projection(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet32, option B."""
    return _create(5, "B", pretrained, kwargs)


def resnet44_projection(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet44, option B."""
    return _create(7, "B", pretrained, kwargs)


def resnet56_projection(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet56, option B."""
    return _create(9, "B", pretrained, kwargs)


def _create(units: int, option: str, pretrained: bool, kwargs: dict[str, Any]) -> CifarResNet:
    return create(lambda **options: CifarResNet(units, option, **options), pretrained, kwargs)
