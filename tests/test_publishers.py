"""Weights under the names of those who publish them, against their own networks or the names these have."""

import re

import pytest
import timm
import torch
import torchvision

from hawq.models import ModelSpec
from hawq.models.publishers import find_publication
from hawq.records import Normalization, Preprocessing

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Every unit of convolution and batch norm in PyTorchCV 0.0.74; [1-3] stands for 1, 2 and 3.
PYTORCHCV = {
    "resnet50": """features.init_block.conv
        features.stage1.unit[1-3].body.conv[1-3]  features.stage2.unit[1-4].body.conv[1-3]
        features.stage3.unit[1-6].body.conv[1-3]  features.stage4.unit[1-3].body.conv[1-3]
        features.stage[1-4].unit1.identity_conv""",
    "squeezenext": """features.init_block.conv  features.final_block
        features.stage1.unit[1-6].conv[1-5]  features.stage2.unit[1-6].conv[1-5]
        features.stage3.unit[1-8].conv[1-5]  features.stage4.unit1.conv[1-5]
        features.stage[1-4].unit1.identity_conv""",
    "inception_v3": """features.init_block.conv[1-5]
        features.stage1.unit[1-3].branches.branch1.conv  features.stage1.unit[1-3].branches.branch4.conv
        features.stage1.unit[1-3].branches.branch2.conv_list.conv[1-2]
        features.stage1.unit[1-3].branches.branch3.conv_list.conv[1-3]
        features.stage2.unit1.branches.branch1.conv_list.conv1
        features.stage2.unit1.branches.branch2.conv_list.conv[1-3]
        features.stage2.unit[2-5].branches.branch1.conv  features.stage2.unit[2-5].branches.branch4.conv
        features.stage2.unit[2-5].branches.branch2.conv_list.conv[1-3]
        features.stage2.unit[2-5].branches.branch3.conv_list.conv[1-5]
        features.stage3.unit1.branches.branch1.conv_list.conv[1-2]
        features.stage3.unit1.branches.branch2.conv_list.conv[1-4]
        features.stage3.unit[2-3].branches.branch1.conv  features.stage3.unit[2-3].branches.branch4.conv
        features.stage3.unit[2-3].branches.branch2.conv_list.conv1
        features.stage3.unit[2-3].branches.branch3.conv_list.conv[1-2]
        features.stage3.unit[2-3].branches.branch[2-3].conv1x3
        features.stage3.unit[2-3].branches.branch[2-3].conv3x1""",
}
CLASSIFIERS = {"resnet50": "output", "squeezenext": "output", "inception_v3": "output.fc"}


def expanded(pattern):
    """a[1-2].b → a1.b, a2.b."""
    found = re.search(r"\[(\d)-(\d)\]", pattern)
    if not found:
        return [pattern]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [name for n in numbers for name in expanded(f"{pattern[: found.start()]}{n}{pattern[found.end() :]}")]


@pytest.mark.parametrize("name", PYTORCHCV)
def test_names_of_pytorchcv(name):
    units = [unit for pattern in PYTORCHCV[name].split() for unit in expanded(pattern)]
    theirs = {f"{unit}.{part}" for unit in units for part in ("conv", "bn")} | {CLASSIFIERS[name]}
    with torch.device("meta"):
        ours = {parameter.rpartition(".")[0] for parameter in timm.create_model(name).state_dict()}
    modules = find_publication("pytorchcv", name).modules
    assert set(modules) == theirs
    assert sorted(modules.values()) == sorted(ours)


def stored(tmp_path, name, source):
    """A file with the names of a source, and the weights in it under ours."""
    publication = find_publication(source, name)
    network = timm.create_model(name, num_classes=7)
    theirs = {ours: name for name, ours in publication.modules.items()}
    state = {}
    for parameter, tensor in network.state_dict().items():
        layer, _, leaf = parameter.rpartition(".")
        state[f"{theirs[layer]}.{leaf}"] = tensor
    torch.save(state, tmp_path / "weights.pth")
    return network


def test_pytorchcv_file(tmp_path):
    network = stored(tmp_path, "squeezenext", "pytorchcv")
    loaded = ModelSpec("squeezenext", str(tmp_path / "weights.pth"), source="pytorchcv").build(7)
    assert (loaded.normalization, loaded.preprocessing) == (IMAGENET, Preprocessing(224, 0.875, "bilinear"))
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in loaded.network.state_dict().items())


TORCHVISION = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), IMAGENET, 224),
    "inception_v3": (lambda: torchvision.models.inception_v3(num_classes=7, init_weights=False), HALVES, 299),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_network_computes_the_same(name, tmp_path):
    make, normalization, side = TORCHVISION[name]
    theirs = make().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    loaded = ModelSpec(name, str(tmp_path / "weights.pth"), source="torchvision").build(7)
    assert (loaded.normalization, loaded.preprocessing) == (normalization, Preprocessing(side, 0.875, "bilinear"))
    images = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network.eval()(images), theirs(images))


def test_inception_of_torchvision_normalises_inside():
    """Given images in ImageNet's normalisation it computes with (x − ½) / ½: what our preparation hands over."""
    pixels = torch.rand(1, 3, 2, 2)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    with torch.device("meta"):
        network = torchvision.models.inception_v3(transform_input=True, init_weights=False)
    torch.testing.assert_close(network._transform_input((pixels - mean) / std), (pixels - 0.5) / 0.5)


def test_timm_names_and_preparation(tmp_path):
    network = timm.create_model("resnet18.tv_in1k", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = ModelSpec("resnet18.tv_in1k", str(tmp_path / "weights.pth"), source="timm").build(7)
    assert (loaded.normalization, loaded.preprocessing) == (IMAGENET, Preprocessing(224, 0.875, "bilinear"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision", "for another network than ResNet: missing names .*unexpected names .*features.init_block"),
        ("pytorchcv", "has layers that this source does not have in this network: features.final_block.bn"),
    ],
)
def test_another_network_is_refused(source, message, tmp_path):
    stored(tmp_path, "squeezenext", "pytorchcv")
    with pytest.raises(ValueError, match=rf"^checkpoint=.*weights.pth.*{message}"):
        ModelSpec("resnet50", str(tmp_path / "weights.pth"), source=source).build(7)


def test_a_missing_name_is_refused(tmp_path):
    stored(tmp_path, "squeezenext", "pytorchcv")
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    del state["features.stage3.unit2.conv4.bn.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing names \[stage3.1.conv4.bn.running_var\], unexpected names none"):
        ModelSpec("squeezenext", str(tmp_path / "weights.pth"), source="pytorchcv").build(7)
