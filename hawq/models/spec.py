"""Where the float network comes from: any name in timm's registry; weights from a file, from timm's hub, or random."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.models.checkpoints import read_checkpoint
from hawq.models.publishers import PUBLISHERS, Publication, find_publication
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import nn

_MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class FloatModel:
    """A float network and the input it expects; `normalization` is None while it has not been trained."""

    network: nn.Module
    normalization: Normalization | None
    preprocessing: Preprocessing


@component("model/spec")
@dataclass(frozen=True)
class ModelSpec:
    """A network by its name in timm's registry (this package adds the CIFAR ResNets and SqueezeNext to it).

    Args:
        name: name in timm's registry.
        checkpoint: path of a weights file, or None to train the float network first.
        source: who published the checkpoint: "timm", "torchvision" or "pytorchcv". Decides the names of its weights
            and how images are preprocessed. None: our names, preprocessed as the file or `mean` and `std` say.
        pretrained: download timm's pretrained weights.
        mean, std: normalisation of the checkpoint's inputs, RGB in 0 … 1; only for files that do not carry their own.
        small_input_size: side in pixels of small embedded images, 8 to 4096.
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
    small_input_size: int = 32
    blocks: Any = "block"
    channels_last: bool = True

    def __post_init__(self) -> None:
        check_range("small_input_size", self.small_input_size, least=8, most=_MAX_SIDE)
        from hawq.blocks import GRANULARITIES

        patterns = isinstance(self.blocks, (list, tuple)) and all(isinstance(item, str) for item in self.blocks)
        if self.blocks not in GRANULARITIES and not patterns:
            raise ValueError(
                f"blocks={self.blocks!r} is unknown: give {', '.join(GRANULARITIES)} or a list of patterns"
            )
        if self.checkpoint and self.pretrained:
            raise ValueError(f"checkpoint={self.checkpoint} and pretrained=true were both given: give one of them")
        self._check_normalization()
        self._check_name()
        self._check_source()

    def _check_name(self) -> None:
        import timm

        if not timm.is_model(self.name):
            close = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
            raise ValueError(f"name={self.name!r} is not in timm's registry: {hint}")

    def _check_source(self) -> None:
        if self.source is None:
            return
        check_choice("source", self.source, (*PUBLISHERS, "null"))
        if not self.checkpoint:
            raise ValueError(f"source={self.source} belongs to a checkpoint: give checkpoint=path too")
        if self.source != "timm":
            find_publication(self.source, self._architecture)

    def _check_normalization(self) -> None:
        given = [values for values in (self.mean, self.std) if values is not None]
        complete = len(given) != 1 and all(len(values) == 3 and all(map(isfinite, values)) for values in given)
        if not complete or any(value <= 0 for value in self.std or ()):
            raise ValueError(f"mean={self.mean} std={self.std}: give both, [r,g,b] each, finite, with positive std")
        if self.mean is not None and not self.checkpoint:
            raise ValueError(f"mean={self.mean} std={self.std} belong to a checkpoint: give checkpoint=path too")

    @property
    def _architecture(self) -> str:
        """The name without timm's tag of the pretrained weights."""
        return self.name.partition(".")[0]

    def build(self, num_classes: int) -> FloatModel:
        """The network on the CPU: with loaded weights where a checkpoint was given, else random and yet to be trained.

        Args:
            num_classes: its outputs.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint that is damaged or for another network, or weights that cannot be downloaded.
        """
        from hawq.weights import load_strictly

        network = self._create(num_classes)
        own = _publication_of_timm(network)
        if self.pretrained:
            return FloatModel(network, own.normalization, own.preprocessing)
        if self.checkpoint is None:
            return FloatModel(network, None, own.preprocessing)
        publication = own if self.source == "timm" else None
        if self.source not in ("timm", None):
            publication = find_publication(str(self.source), self._architecture)
        given = Normalization(tuple(self.mean), tuple(self.std)) if self.mean and self.std else None
        checkpoint = read_checkpoint(Path(self.checkpoint), given, publication)
        load_strictly(network, checkpoint.state, f"checkpoint={self.checkpoint}")
        return FloatModel(network, checkpoint.normalization, (publication or own).preprocessing)

    def _create(self, num_classes: int) -> nn.Module:
        import timm

        try:
            return timm.create_model(self.name, pretrained=self.pretrained, num_classes=num_classes)
        except (OSError, RuntimeError) as error:
            if not self.pretrained:
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"pretrained=true could not download the weights of {self.name} ({reason}): give checkpoint=path"
            ) from error


def _publication_of_timm(network: nn.Module) -> Publication:
    """What a network of timm's registry says about its own inputs."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    preprocessing = Preprocessing(config["input_size"][-1], config["crop_pct"], config["interpolation"])
    return Publication(Normalization(tuple(config["mean"]), tuple(config["std"])), preprocessing)
