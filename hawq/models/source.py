"""Where the float network comes from: any name in timm's registry, random, from a file or from timm's hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from hawq.blocks import GRANULARITIES
from hawq.components import component
from hawq.models.checkpoints import read_checkpoint
from hawq.models.publishers import SOURCES, Publication, find_publication
from hawq.records import Normalization, Preprocessing
from hawq.weights import load_strictly


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
        name: timm name.
        checkpoint: weights file, or None to train the float network first.
        source: who published the checkpoint: "timm", "torchvision" or "pytorchcv". Decides the names of its weights and
            how images are prepared. None: our names, prepared as the file or `mean` and `std` say.
        pretrained: take timm's pretrained weights from its hub (needs a network).
        mean, std: normalisation of the checkpoint's inputs, RGB in 0 … 1; only for files that do not carry their own.
        small_input_size: side used with small embedded images.
        blocks: "block", "layer", "network", or regular expressions that group layers by name (see `find_blocks`).
        channels_last: memory format during training and evaluation.

    Raises:
        ValueError: an unknown name, contradicting sources, or a value out of range.
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
        if not timm.is_model(self.name):
            close = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
            raise ValueError(f"model.name={self.name!r} is not in timm's registry: {hint}")
        if self.checkpoint and self.pretrained:
            raise ValueError("model.checkpoint and model.pretrained=true were both given: give one of them")
        if self.source is not None:
            self._check_source(self.source)
        given = [values for values in (self.mean, self.std) if values is not None]
        if len(given) == 1 or any(len(values) != 3 for values in given) or any(value <= 0 for value in self.std or ()):
            raise ValueError(f"model.mean={self.mean} model.std={self.std}: give both, [r,g,b] each, with positive std")
        if self.mean is not None and not (self.checkpoint):
            raise ValueError("model.mean and model.std belong to a checkpoint: give model.checkpoint=path too")
        if self.small_input_size < 8:
            raise ValueError(f"model.small_input_size={self.small_input_size} is out of range: give 8 or more")
        patterns = isinstance(self.blocks, (list, tuple)) and all(isinstance(item, str) for item in self.blocks)
        if self.blocks not in GRANULARITIES and not patterns:
            raise ValueError(
                f"model.blocks={self.blocks!r} is unknown: give {', '.join(GRANULARITIES)} or a list of patterns"
            )

    def _check_source(self, source: str) -> None:
        if source not in SOURCES:
            raise ValueError(f"model.source={source!r} is unknown: give {', '.join(SOURCES)}, or null")
        if not self.checkpoint:
            raise ValueError(f"model.source={source} belongs to a checkpoint: give model.checkpoint=path too")
        if source != "timm":
            find_publication(source, self._architecture)

    @property
    def _architecture(self) -> str:
        """The name without timm's tag of the pretrained weights."""
        return self.name.partition(".")[0]

    def build(self, num_classes: int) -> FloatModel:
        """The network with its weights: loaded where a source was given, else random and still to be trained.

        Raises FileNotFoundError or ValueError for a checkpoint that is missing, damaged or for another network.
        """
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
        load_strictly(network, checkpoint.state, f"model.checkpoint={self.checkpoint}")
        return FloatModel(network, checkpoint.normalization, (publication or own).preprocessing)

    def _create(self, num_classes: int) -> nn.Module:
        try:
            return timm.create_model(self.name, pretrained=self.pretrained, num_classes=num_classes)
        except (OSError, RuntimeError) as error:
            if not self.pretrained:
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model.pretrained=true could not fetch weights of {self.name} ({reason}): give model.checkpoint=path"
            ) from error


def _publication_of_timm(network: nn.Module) -> Publication:
    """What a network of timm's registry says about its own inputs."""
    config = resolve_model_data_config(network)
    preprocessing = Preprocessing(config["input_size"][-1], config["crop_pct"], config["interpolation"])
    return Publication(Normalization(tuple(config["mean"]), tuple(config["std"])), preprocessing)
