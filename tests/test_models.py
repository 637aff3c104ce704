"""Networks by name, and checkpoints that say how their inputs were normalised."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from runs import REPOSITORY

from hawq.models import ModelSpec, timm_networks
from hawq.models.registry import OWN_NETWORKS
from hawq.records import Normalization

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
from hawq.models import ModelSpec, registry
Cifar10("x"), Digits(), ImageFolder("x"), TimmData("x", 2)
print({"torch", "torchvision", "timm", "sklearn", "PIL", "safetensors"} & set(sys.modules))
registry.OWN_NETWORKS = {"ours": ("ours",)}
sys.path[:0] = [sys.argv[1]]
package.models.__path__ += [sys.argv[1]]
import timm
print(timm.models.names)
"""


def test_settings_load_no_other_library_and_timm_hears_of_our_networks_when_it_is_imported(tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import timm.models")
    program = "names = ['theirs']\ndef register_model(make):\n    names.append(make.__name__)"
    (tmp_path / "timm" / "models.py").write_text(program)
    (tmp_path / "ours.py").write_text("def ours():\n    pass")
    done = subprocess.run(
        [sys.executable, "-c", LAZY, tmp_path], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "set()\n['theirs', 'ours']\n", done.stderr


@pytest.mark.parametrize("name", [name for names in OWN_NETWORKS.values() for name in names])
def test_our_own_networks_are_built_as_timm_would(name):
    """They are built without timm: the same weights from the same random numbers, the same preparation of images."""
    torch.manual_seed(3)
    ours, publication = timm_networks.build(name, 7, pretrained=False, size=None)
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=7)
    assert type(ours) is type(theirs) and str(ours) == str(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    config = timm.data.resolve_model_data_config(theirs)
    asked = publication.preprocessing
    assert (3, asked.size, asked.size, asked.crop, asked.interpolation) == (
        *config["input_size"],
        config["crop_pct"],
        config["interpolation"],
    )
    assert not asked.fixed_size and publication.normalization == Normalization(config["mean"], config["std"])


def test_our_own_networks_do_not_load_timm():
    program = (
        "import sys, hawq\n"
        "from hawq.models import ModelSpec\n"
        "[hawq.find_blocks(ModelSpec(name).build(10).network) for name in ('resnet20', 'squeezenext')]\n"
        "print({'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("name", ["resnet20", "squeezenext"])
def test_our_own_networks_say_where_weights_come_from(name):
    with pytest.raises(ValueError, match=r"give checkpoint=path"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(ValueError, match=r"give checkpoint=path"):
        ModelSpec(name, pretrained=True).build(10)


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


def test_weights_of_another_network_are_refused_by_names(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet20").state_dict(), path)
    with pytest.raises(ValueError, match=r"missing names .*layer2.0.downsample.0.weight.*unexpected names none"):
        ModelSpec("resnet20_projection", str(path)).build(10)


@pytest.mark.parametrize(
    ("name", "right", "file"),
    [
        ("resnet20_projection", "resnet20", "resnet20_optA_akamaster.th"),
        ("resnet20", "resnet20_projection", "resnet20_optB_pyhessian.pkl"),
        ("resnet32", "resnet20_projection", "resnet20_optB_apot.pth.tar"),
        ("resnet18", "squeezenet1_1 source=torchvision", "squeezenet1_1_torchvision_fp16.safetensors"),
    ],
)
def test_a_published_file_under_a_wrong_name_is_refused_with_the_right_one(name, right, file):
    with pytest.raises(ValueError, match=f"{file} is .* does not fit name={name}: give name={right}$"):
        ModelSpec(name, str(published(file))).build(10)


def test_another_number_of_classes_is_refused():
    path = published("resnet20_optA_akamaster.th")
    with pytest.raises(ValueError, match=r"fc.weight \(10, 64\) for \(100, 64\)"):
        ModelSpec("resnet20", str(path)).build(100)


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
        ({"input_size": 7}, "^input_size=7 is out of range: give 8 to 4096, or null"),
        ({"input_size": 10**9}, "^input_size=1000000000 is out of range"),
        ({"small_input_size": 10**9}, "^small_input_size=1000000000 is out of range"),
        ({"crop": 0.0}, "^crop=0.0 is out of range"),
        ({"crop": float("nan")}, "^crop=nan is out of range"),
        ({"interpolation": "cubic"}, "^interpolation='cubic' is unknown: give .*bicubic"),
        ({"checkpoint": "x", "mean": (0.5, float("inf"), 0.5), "std": (0.5,) * 3}, "finite"),
        ({"checkpoint": "package"}, "^checkpoint=package is not known for resnet20 .known: tf_efficientnet_lite0"),
        ({"name": "squeezenet1_1"}, "torchvision has it: give source=torchvision"),
        ({"blocks": "channel"}, "^blocks='channel'"),
        ({"source": "timm"}, "give checkpoint"),
        ({"checkpoint": "x", "source": "keras"}, "'keras' is unknown: give timm, torchvision, pytorchcv"),
        (
            {"checkpoint": "x", "source": "torchvision"},
            "not known for resnet20: did you mean resnet",
        ),
    ],
    ids=str,
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{"name": "resnet20"} | values)
