"""SqueezeNext (Gholami et al., 1803.10615): bottlenecks with the 3×3 convolution split into 1×3 and 3×1."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from hawq.models.publishers import IMAGENET
from hawq.models.registry import create

__all__ = ["SqueezeNext", "squeezenext"]

UNITS = (6, 6, 8, 1)  # 1.0-SqNxt-23, 1803.10615, table 1
CHANNELS = (32, 64, 128, 256)


class ConvUnit(nn.Module):
    """Convolution (with bias, as published), batch norm, ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, padding: Any = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H/stride, W/stride) for a kernel that is padded."""
        return F.relu(self.bn(self.conv(x)))


class SqueezeNextUnit(nn.Module):
    """Two 1×1 convolutions that squeeze, a 1×3, a 3×1, and a 1×1 that expands, with a shortcut (figure 1)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        squeeze = 1 if stride == 2 else 4 if in_channels > channels else 2
        narrow = in_channels // squeeze
        self.conv1 = ConvUnit(in_channels, narrow, stride=stride)
        self.conv2 = ConvUnit(narrow, narrow // 2)
        self.conv3 = ConvUnit(narrow // 2, narrow, (1, 3), padding=(0, 1))
        self.conv4 = ConvUnit(narrow, narrow, (3, 1), padding=(1, 0))
        self.conv5 = ConvUnit(narrow, channels)
        self.shortcut: nn.Module = nn.Identity()
        if squeeze != 2:  # the shape changes
            self.shortcut = ConvUnit(in_channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H/stride, W/stride)."""
        out = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class SqueezeNext(nn.Module):
    """SqueezeNext of 23 layers; at width 2 it is the network of HAWQ's table 4 (2,583,752 parameters).

    Args:
        width: multiplier of all channels.
        num_classes: outputs.
        in_chans: image channels.
    """

    pretrained_cfg: ClassVar = {  # what timm asks a network for: how its inputs are prepared
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET.mean,
        "std": IMAGENET.std,
    }

    def __init__(self, width: int, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = 64 * width
        self.stem = ConvUnit(in_chans, channels, (7, 7), stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        stages = []
        for stage, (units, base) in enumerate(zip(UNITS, CHANNELS, strict=True)):
            strides = [2 if stage else 1] + [1] * (units - 1)
            inputs = [channels] + [base * width] * (units - 1)
            channels = base * width
            stages.append(
                nn.Sequential(*[SqueezeNextUnit(i, channels, s) for i, s in zip(inputs, strides, strict=True)])
            )
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.final = ConvUnit(channels, 128 * width)
        self.fc = nn.Linear(128 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) → logits (N, num_classes)."""
        x = self.pool(self.stem(x))  # (N, 64·width, H/4, W/4)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))  # (N, 256·width, H/32, W/32)
        logits: Tensor = self.fc(self.final(x).mean(dim=(2, 3)))  # (N, classes)
        return logits


def squeezenext(pretrained: bool = False, **kwargs: Any) -> SqueezeNext:
    """2.0-SqNxt-23, the network of HAWQ's table 4."""
    return create(lambda **options: SqueezeNext(2, **options), pretrained, kwargs)
