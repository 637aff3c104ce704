"""Publishers of weights: their names for the layers of our networks, and how they preprocess images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SIDE_224, _SIDE_299 = Preprocessing(224, 0.875, "bilinear"), Preprocessing(299, 0.875, "bilinear")

PUBLISHERS = ("timm", "torchvision", "pytorchcv")
_MOST = 8  # names in a message


@dataclass(frozen=True)
class Publication:
    """One network as one publisher has it.

    Args:
        normalization, preprocessing: of its inputs.
        modules: every layer's name at the publisher → ours; None where the names are the same.
        left_out: top-level modules of theirs that our network does not have.
    """

    normalization: Normalization
    preprocessing: Preprocessing
    modules: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()

    def names_of(self, ours: Iterable[str]) -> set[str]:
        """The publisher's names of tensors that are `ours`; names that the publisher does not have are left out."""
        if self.modules is None:
            return set(ours)
        theirs = {our: their for their, our in self.modules.items()}
        parts = (name.rpartition(".") for name in ours)
        return {f"{theirs[layer]}.{leaf}" for layer, _, leaf in parts if layer in theirs}

    def rename(self, state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
        """The tensors of `state` by our names. Raises ValueError, beginning with `origin`, for an unknown layer."""
        kept = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in self.left_out}
        if self.modules is None:
            return kept
        unknown = sorted({_layer(name) for name in kept} - self.modules.keys())
        if unknown:
            raise ValueError(
                f"{origin} has layers that this source does not have in this network: "
                f"{', '.join(unknown[:_MOST])}{f' and {len(unknown) - _MOST} more' if len(unknown) > _MOST else ''}; "
                "choose the matching model and source"
            )
        return {f"{self.modules[_layer(name)]}.{name.rpartition('.')[2]}": tensor for name, tensor in kept.items()}


def find_publication(source: str, network: str) -> Publication:
    """How the publisher `source` has `network` (a name of timm). Raises ValueError, with what is known, for others."""
    try:
        return PUBLISHED[source, network]
    except KeyError:
        known = ", ".join(name for publisher, name in PUBLISHED if publisher == source)
        raise ValueError(
            f"source={source} is not known for {network} (known: {known}): give mean and std instead, if the names in "
            "the file are those of timm"
        ) from None


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _resnet50b() -> dict[str, str]:
    """PyTorchCV's resnet50b, with the stride in the 3×3 convolution as in timm and torchvision."""
    names = {"features.init_block.conv.conv": "conv1", "features.init_block.conv.bn": "bn1", "output": "fc"}
    for stage, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            theirs, ours = f"features.stage{stage}.unit{unit + 1}", f"layer{stage}.{unit}"
            for number in (1, 2, 3):
                names[f"{theirs}.body.conv{number}.conv"] = f"{ours}.conv{number}"
                names[f"{theirs}.body.conv{number}.bn"] = f"{ours}.bn{number}"
        names[f"features.stage{stage}.unit1.identity_conv.conv"] = f"layer{stage}.0.downsample.0"
        names[f"features.stage{stage}.unit1.identity_conv.bn"] = f"layer{stage}.0.downsample.1"
    return names


_POOLED = {"branch1.conv": "branch1x1", "branch4.conv": "branch_pool"}
_INCEPTION_A = _POOLED | {
    **{f"branch2.conv_list.conv{i}": f"branch5x5_{i}" for i in (1, 2)},
    **{f"branch3.conv_list.conv{i}": f"branch3x3dbl_{i}" for i in (1, 2, 3)},
}
_REDUCTION_A = {"branch1.conv_list.conv1": "branch3x3"} | {
    f"branch2.conv_list.conv{i}": f"branch3x3dbl_{i}" for i in (1, 2, 3)
}
_INCEPTION_B = _POOLED | {
    **{f"branch2.conv_list.conv{i}": f"branch7x7_{i}" for i in (1, 2, 3)},
    **{f"branch3.conv_list.conv{i}": f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)},
}
_REDUCTION_B = {
    **{f"branch1.conv_list.conv{i}": f"branch3x3_{i}" for i in (1, 2)},
    **{f"branch2.conv_list.conv{i}": f"branch7x7x3_{i}" for i in (1, 2, 3, 4)},
}
_INCEPTION_C = _POOLED | {
    "branch2.conv_list.conv1": "branch3x3_1",
    "branch2.conv1x3": "branch3x3_2a",
    "branch2.conv3x1": "branch3x3_2b",
    **{f"branch3.conv_list.conv{i}": f"branch3x3dbl_{i}" for i in (1, 2)},
    "branch3.conv1x3": "branch3x3dbl_3a",
    "branch3.conv3x1": "branch3x3dbl_3b",
}
_INCEPTION_UNITS = {
    "stage1": (("Mixed_5b", _INCEPTION_A), ("Mixed_5c", _INCEPTION_A), ("Mixed_5d", _INCEPTION_A)),
    "stage2": (("Mixed_6a", _REDUCTION_A), *((f"Mixed_6{letter}", _INCEPTION_B) for letter in "bcde")),
    "stage3": (("Mixed_7a", _REDUCTION_B), ("Mixed_7b", _INCEPTION_C), ("Mixed_7c", _INCEPTION_C)),
}
_INCEPTION_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


def _inceptionv3() -> dict[str, str]:
    units = {f"features.init_block.conv{number}": name for number, name in enumerate(_INCEPTION_STEM, start=1)}
    for stage, mixed in _INCEPTION_UNITS.items():
        for number, (name, branches) in enumerate(mixed, start=1):
            place = f"features.{stage}.unit{number}.branches"
            units |= {f"{place}.{theirs}": f"{name}.{ours}" for theirs, ours in branches.items()}
    return _conv_and_norm(units) | {"output.fc": "fc"}


def _sqnxt23() -> dict[str, str]:
    units = {"features.init_block.conv": "stem", "features.final_block": "final"}
    for stage, count in enumerate((6, 6, 8, 1), start=1):
        for unit in range(count):
            theirs, ours = f"features.stage{stage}.unit{unit + 1}", f"stage{stage}.{unit}"
            units |= {f"{theirs}.conv{number}": f"{ours}.conv{number}" for number in (1, 2, 3, 4, 5)}
        units[f"features.stage{stage}.unit1.identity_conv"] = f"stage{stage}.0.shortcut"
    return _conv_and_norm(units) | {"output": "fc"}


def _conv_and_norm(units: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in units.items() for part in ("conv", "bn")}


# torchvision's Inception-V3 itself maps images from ImageNet's mean and std to −1 … 1; in all that is (x − ½) / ½.
PUBLISHED = {
    ("torchvision", "resnet18"): Publication(IMAGENET, _SIDE_224),
    ("torchvision", "resnet50"): Publication(IMAGENET, _SIDE_224),
    ("torchvision", "inception_v3"): Publication(_HALVES, _SIDE_299, left_out=("AuxLogits",)),
    ("pytorchcv", "resnet50"): Publication(IMAGENET, _SIDE_224, _resnet50b()),
    ("pytorchcv", "inception_v3"): Publication(IMAGENET, _SIDE_299, _inceptionv3()),
    ("pytorchcv", "squeezenext"): Publication(IMAGENET, _SIDE_224, _sqnxt23()),
}
