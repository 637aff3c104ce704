"""Classification networks of torchvision: building them, their published weights, and how these want their inputs."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from hawq.models.publishers import Publication
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import nn

_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception that only training uses
# These two map images from ImageNet's mean and std to −1 … 1 themselves; together that is (x − ½) / ½.
_NORMALISE_INSIDE = ("googlenet", "inception_v3")
_HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@cache
def names() -> tuple[str, ...]:
    """All classification networks of torchvision."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def check_name(name: str) -> None:
    """Raises ValueError, with what is close, unless torchvision has a classification network `name`."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise ValueError(f"source=torchvision is not known for {name}: {hint}")


def build(
    name: str, num_classes: int, *, pretrained: bool, size: int | None, publication: Publication | None = None
) -> tuple[nn.Module, Publication]:
    """A network of torchvision, random unless `pretrained`, and how it wants its inputs.

    Args:
        name: one of `names()`.
        num_classes: outputs.
        pretrained: download its default weights, which have 1000 outputs.
        size: side in pixels that the user chose, or None for the publication's.
        publication: of the weights to be loaded, where they are known; else that of the network's default weights is
            used for `pretrained`, and of its first weights otherwise.

    Raises:
        ValueError: weights that cannot be downloaded or have another number of outputs, or an impossible size.
    """
    from torchvision import models

    weights = models.get_model_weights(name)
    chosen = weights.DEFAULT if pretrained else next(iter(weights))
    published = publication or _publication(name, chosen)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _NORMALISE_INSIDE else {}
    side = size or published.preprocessing.size
    if name.startswith("vit_"):
        options["image_size"] = side
    if name.startswith("maxvit"):
        options["input_size"] = (side, side)
    try:
        network: nn.Module = models.get_model(name, num_classes=num_classes, **options)
    except (ValueError, AssertionError) as error:
        if size is None:
            raise
        raise ValueError(
            f"input_size={size} is not possible with {name} ({error}): give null, for {published.preprocessing.size}"
        ) from error
    return network, load_default(network, name, num_classes) if pretrained else published


def load_default(network: nn.Module, name: str, num_classes: int) -> Publication:
    """Downloads torchvision's default weights of the network `name` into it, and returns their publication.

    Raises ValueError where that fails, or where the network has not the 1000 outputs of the weights.
    """
    from torchvision import models

    from hawq.weights import load_strictly

    weights = models.get_model_weights(name).DEFAULT
    published = _publication(name, weights)
    if num_classes != len(weights.meta["categories"]):
        raise ValueError(
            f"pretrained=true has weights for {len(weights.meta['categories'])} classes, the data set has "
            f"{num_classes}: give pretrained=false"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"pretrained=true could not download the weights of {name} ({reason}): give checkpoint=path"
        ) from error
    load_strictly(network, published.rename(state, weights.url), weights.url)
    return published


def find_weights(sha256: str) -> tuple[str, Publication] | None:
    """The network whose published weights have this SHA-256 (hexadecimal), and their publication; else None.

    torchvision ends the names of its files with the first eight digits.
    """
    return next(
        ((name, _publication(name, entry)) for digits, name, entry in _files() if sha256.startswith(digits)), None
    )


def _files() -> Iterator[tuple[str, str, Any]]:
    """The first digits of the SHA-256, the network and torchvision's entry of every published file."""
    from torchvision import models

    for name in names():
        for entry in models.get_model_weights(name):
            if found := re.search(r"-([0-9a-f]{8,})\.pth$", entry.url):
                yield found[1], name, entry


def _publication(name: str, weights: Any) -> Publication:
    """How torchvision's entry of one weights file prepares images."""
    preset = weights.transforms()
    (size,), (resized,) = preset.crop_size, preset.resize_size
    normalization = Normalization(tuple(preset.mean), tuple(preset.std))
    preprocessing = Preprocessing(
        size, _crop(size, resized), preset.interpolation.value, fixed_size=name.startswith(("vit_", "maxvit"))
    )
    inside = name in _NORMALISE_INSIDE
    return Publication(_HALVES if inside else normalization, preprocessing, left_out=_AUXILIARY if inside else ())


def _crop(size: int, resized: int) -> float:
    """The share of the resized side that is cropped, such that timm resizes to exactly `resized`: ⌊size / crop⌋."""
    crop = size / resized
    return crop if math.floor(size / crop) == resized else size / (resized + 1e-6)
