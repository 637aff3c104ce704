"""Networks by name, and checkpoints that say how their inputs were normalised."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from networks import build
from runs import REPOSITORY
from torch import nn

from hawq.models import ModelSpec, read_checkpoint, write_checkpoint
from hawq.records import Normalization
from hawq.weights import load_strictly

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
APOT = Normalization((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
OWN = Normalization((0.5, 0.25, 0.125), (0.5, 0.5, 0.25))
PUBLISHED = [
    ("resnet20", "resnet20_optA_akamaster.th", IMAGENET),
    ("resnet20_projection", "resnet20_optB_pyhessian.pkl", CIFAR),
    ("resnet20_projection", "resnet20_optB_bsq.pth.tar", CIFAR),
    ("resnet20_projection", "resnet20_optB_apot.pth.tar", APOT),
]


def published(file):
    path = WEIGHTS / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("resnet20", 269722),  # 0.27 M, 0.46 M, 0.66 M and 0.85 M in table 6 of 1512.03385
        ("resnet32", 464154),
        ("resnet44", 658586),
        ("resnet56", 853018),
        ("resnet20_projection", 272474),
        ("resnet56_projection", 855770),
        ("squeezenext", 2583752),
    ],
)
def test_published_parameter_counts(name, num_parameters):
    model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("name", ["resnet20", "resnet32_projection", "resnet44", "squeezenext"])
@pytest.mark.parametrize("side", [16, 32])
def test_output_shape(name, side):
    assert timm.create_model(name, num_classes=7).eval()(torch.randn(2, 3, side, side)).shape == (2, 7)


LAZY = """
import sys, types
package = types.ModuleType("hawq")  # without what hawq/__init__.py imports
package.__path__ = ["hawq"]
sys.modules["hawq"] = package
from hawq.data import Cifar10, Cifar100, Digits, ImageFolder, ImageNet, TimmData
from hawq.models import ModelSpec
Cifar10("x"), Digits(), ImageFolder("x"), TimmData("x", 2)
print({"torch", "torchvision", "timm", "sklearn", "PIL", "safetensors"} & set(sys.modules))
import timm
print(timm.is_model("resnet20"), timm.is_model("squeezenext"))
"""


def test_settings_load_no_other_library_and_timm_knows_our_networks_once_it_is_imported():
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.stdout == "set()\nTrue True\n", done.stderr


@pytest.mark.parametrize("name", ["resnet20", "squeezenext"])
def test_our_own_networks_say_where_weights_come_from(name):
    with pytest.raises(ValueError, match=r"give checkpoint=path"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize(("name", "file", "normalization"), PUBLISHED)
def test_published_weights_bring_their_normalisation(name, file, normalization):
    path = published(file)
    model = ModelSpec(name, str(path)).build(10)
    assert model.normalization == normalization
    content = torch.load(path, map_location="cpu", weights_only=True)
    stem = content.get("state_dict", content)["module.conv1.weight"]
    assert torch.equal(model.network.conv1.weight, stem)
    assert model.network.bn1.running_var.std() > 0


@pytest.mark.parametrize(("name", "file", "normalization"), PUBLISHED[:2])
def test_normalisation_may_be_repeated_but_not_contradicted(name, file, normalization):
    path = str(published(file))
    assert (
        ModelSpec(name, path, mean=normalization.mean, std=normalization.std).build(10).normalization == normalization
    )
    with pytest.raises(ValueError, match=r"trained with mean .*leave mean and std out"):
        ModelSpec(name, path, mean=normalization.mean, std=OWN.std).build(10)


def test_weights_of_another_network_are_refused_by_names():
    path = published("resnet20_optA_akamaster.th")
    with pytest.raises(ValueError, match=r"missing names .*layer2.0.downsample.0.weight.*unexpected names none"):
        ModelSpec("resnet20_projection", str(path)).build(10)


def test_another_number_of_classes_is_refused():
    path = published("resnet20_optA_akamaster.th")
    with pytest.raises(ValueError, match=r"fc.weight \(10, 64\) for \(100, 64\)"):
        ModelSpec("resnet20", str(path)).build(100)


def stored(path, content):
    torch.save(content, path)
    return path


def test_an_unknown_file_needs_a_normalisation(tmp_path):
    model = build("mlp", torch.float32)
    path = stored(tmp_path / "weights.pth", model.state_dict())
    with pytest.raises(ValueError, match=r"weights.pth does not say.*mean=\[r,g,b\]"):
        read_checkpoint(path, None)
    assert read_checkpoint(path, OWN).normalization == OWN


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["plain", "data parallel", "state_dict", "model"],
)
def test_usual_wrappings_are_understood(wrap, tmp_path):
    model, other = build("residual", torch.float32), build("residual", torch.float32)
    nn.init.zeros_(other.head.weight)
    path = stored(tmp_path / "weights.pth", wrap(model.state_dict()))
    load_strictly(other, read_checkpoint(path, OWN).state, str(path))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_our_own_checkpoint_carries_its_normalisation(tmp_path):
    path = tmp_path / "float.safetensors"
    model = timm.create_model("resnet20", num_classes=4)
    path.write_bytes(write_checkpoint(model, OWN))
    read = ModelSpec("resnet20", str(path)).build(4)
    assert read.normalization == OWN
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.network.state_dict().items())
    with pytest.raises(ValueError, match="trained with mean"):
        read_checkpoint(path, CIFAR)


def test_wrong_names_are_listed(tmp_path):
    state = {"head.weight": torch.zeros(3, 2), "neck.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"missing names .*head.bias.*unexpected names .*neck.weight"):
        load_strictly(nn.ModuleDict({"head": nn.Linear(2, 3)}), state, "weights.pth")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (Path.touch, (self._path,))


def test_a_pickle_with_arbitrary_objects_is_refused_unopened(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "opened"
    for write in (lambda: torch.save({"w": Trap(trace)}, path), lambda: path.write_bytes(pickle.dumps(Trap(trace)))):
        write()
        with pytest.raises(ValueError, match=r"weights.pth is not a file of plain weights"):
            read_checkpoint(path, OWN)
        assert not trace.exists()


def zipped(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.pth", b""),
        ("text.pth", b"hello world"),
        ("truncated.pth", zipped({"w": torch.zeros(9)})[:-50]),
        ("list.pth", zipped([torch.zeros(1)])),
        ("numbers.pth", zipped({"w": 3})),
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello world"),
    ],
)
def test_other_files_are_refused_by_name(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^checkpoint=.*{name}"):
        read_checkpoint(tmp_path / name, OWN)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.pth does not exist"):
        ModelSpec("resnet20", str(tmp_path / "absent.pth"), mean=OWN.mean, std=OWN.std).build(10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "resnet2O"}, r"'resnet2O' is not in timm's registry: did you mean .*resnet"),
        ({"name": "zzzzzz"}, "timm.list_models"),
        ({"checkpoint": "x", "pretrained": True}, "both given"),
        ({"checkpoint": "x", "mean": (0.5,) * 3}, "give both"),
        ({"checkpoint": "x", "mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, "positive std"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "give checkpoint"),
        ({"small_input_size": 7}, "^small_input_size=7 is out of range"),
        ({"small_input_size": 0}, "^small_input_size=0 is out of range"),
        ({"blocks": "channel"}, "^blocks='channel'"),
        ({"source": "timm"}, "give checkpoint"),
        ({"checkpoint": "x", "source": "keras"}, "'keras' is unknown: give timm, torchvision, pytorchcv"),
        (
            {"checkpoint": "x", "source": "torchvision"},
            "not known for resnet20 .known: resnet18, resnet50, inception_v3",
        ),
    ],
    ids=str,
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{"name": "resnet20"} | values)
