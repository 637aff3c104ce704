"""The accuracy of a packed file, measured again from the file and the data set alone."""

import re

import numpy as np
import pytest
import timm
import torch
from runs import read_json, run_folder, run_here, run_script
from sensitivities import plan_of

import hawq.models  # noqa: F401 (registers resnet20 with timm)
from hawq.blocks import find_blocks
from hawq.export import load, save
from hawq.quantization import quantize

HALF = [0.5, 0.5, 0.5]
ABOUT = {"model": "resnet20_projection", "dataset": "cifar10", "mean": HALF, "std": HALF}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A quantised network and the data on which 14 of 20 labels are what it answers."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    network = timm.create_model("resnet20_projection", num_classes=10).eval()
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    blocks = find_blocks(network, inputs[:1])
    small = quantize(network, blocks, plan_of(blocks, 3, 4), [inputs])
    with torch.no_grad():
        answers = small(inputs).argmax(1).numpy()
    labels = np.where(np.arange(20) < 14, answers, (answers + 1) % 10)
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    save(small, folder / "small.safetensors", ABOUT)
    save(quantize(network, blocks, plan_of(blocks, 8, 8), [inputs]), folder / "wide.safetensors", ABOUT)
    torch.save(network.state_dict(), folder / "float.pth")
    save(small, folder / "timm.safetensors", ABOUT | {"dataset": "hfds/some/images"})
    save(small, folder / "silent.safetensors")
    (folder / "odd.json").write_text("[1, 2]")
    (folder / "torn.json").write_text('{"schema": ')
    (folder / "text.safetensors").write_text("hello")
    return folder


HOSTILE = {
    "an interpolated model": {"model": "${oc.env:HOME}"},
    "a quoted interpolation": {"model": "'${oc.env:HOME}'"},
    "a hub's model": {"model": "hf-hub:someone/anything"},
    "an override in the model": {"model": "resnet20 outputs=/tmp"},
    "a sweep of models": {"model": "resnet20,resnet32"},
    "a path as model": {"model": "../../secret"},
    "an interpolated data set": {"dataset": "${oc.env:HOME}"},
    "a path as data set": {"dataset": "../solver/lanczos"},
    "a list as model": {"model": ["resnet20"]},
    "an interpolated size": {"preprocessing": {"size": "${seed}", "crop": 1.0, "interpolation": "bilinear"}},
    "a huge size": {"preprocessing": {"size": 10**9, "crop": 1.0, "interpolation": "bilinear"}},
    "a negative size": {"preprocessing": {"size": -3, "crop": 1.0, "interpolation": "bilinear"}},
    "no crop": {"preprocessing": {"size": 32, "crop": 0.0, "interpolation": "bilinear"}},
    "preprocessing of another form": {"preprocessing": "32"},
    "a small size as text": {"small_input_size": "${seed}"},
    "a zero deviation": {"std": [0.0, 1.0, 1.0]},
    "four channels": {"mean": [0.5] * 4, "std": [0.5] * 4},
    "means as text": {"mean": "abc"},
    "means that are no numbers": {"mean": ["${seed}", 1, 1]},
}


@pytest.mark.parametrize("facts", HOSTILE.values(), ids=HOSTILE)
def test_what_a_file_says_is_no_config(facts, material, monkeypatch, tmp_path):
    """A file may come from anyone: its names are plain names and its sizes sizes, or it is refused in one line."""
    monkeypatch.setenv("HOME", "/home/of-a-secret")
    path = material / "hostile.safetensors"
    network = load(material / "small.safetensors", timm.create_model("resnet20_projection", num_classes=10))
    save(network, path, ABOUT | facts)
    error = run_script("evaluate.py", path, f"dataset.path={material / 'data.npz'}", "threads=1", "device=cpu")
    assert error is not None and error.startswith("error: ") and len(error.splitlines()) == 1
    assert "of-a-secret" not in error


def cells(text):
    """Cells of the only row of the printed table."""
    return [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]


def test_the_file_and_the_data_suffice(material, capsys):
    path = material / "small.safetensors"
    assert run_script("evaluate.py", path, f"dataset.path={material / 'data.npz'}", "threads=1", "device=cpu") is None
    text = capsys.readouterr().out
    assert cells(text)[1:5] == ["3", "4", "70.00", "10.67×"]
    assert f"14 of 20 test images of cifar10 are right; {path.stat().st_size:,} bytes on disk" in text


def test_networks_are_compared_on_the_same_images(material, capsys):
    data = [
        f"dataset.path={material / 'data.npz'}",
        "threads=1",
        "device=cpu",
        f"model.checkpoint={material / 'float.pth'}",
    ]
    names = ["float", material / "wide.safetensors", material / "small.safetensors"]
    against = [part for name in names for part in ("--against", name)]
    checkpoint = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]"]
    assert run_script("evaluate.py", material / "small.safetensors", *checkpoint, *against, *data) is None
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("against ")]
    form = r"against (.*) \((.*) %\): (.*) points \(95 %: (.*) to (.*)\), (.*) % in the same .* outputs (.*) ± (.*)"
    found = [re.fullmatch(form, line).groups() for line in lines]
    assert [one[0] for one in found] == [str(name) for name in names]
    numbers = [[float(part) for part in one[1:]] for one in found]
    for accuracy, difference, low, high, same, kl, error in numbers:
        assert difference == pytest.approx(70 - accuracy, abs=0.01) and low <= difference <= high
        assert 0 <= same <= 100 and kl >= 0 and error >= 0
    itself = numbers[-1]
    assert itself[:2] == [70.0, 0.0] and itself[4:] == [100.0, 0.0, 0.0]
    assert 0 < abs(numbers[0][5] - numbers[1][5]) < 0.3 * numbers[0][5]  # 8 bits are nearly float
    network = timm.create_model("resnet20_projection", num_classes=10).eval()
    network.load_state_dict(torch.load(material / "float.pth"))
    small = load(material / "small.safetensors", network)
    images = np.load(material / "data.npz")["test_images"]
    with torch.no_grad():
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        p, q = (one.eval()(inputs).log_softmax(1) for one in (network, small))
    assert numbers[0][5] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=0.01)


NETWORKS = {
    "a size that is not the default one": [],
    "a network of torchvision, and a size that small images reach in two steps": [
        "model.source=torchvision",
        "model.name=squeezenet1_1",
        "model.input_size=24",
    ],
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_file_of_a_run_is_measured_as_the_run_did(network, tmp_path, capsys):
    assert run_here(tmp_path, *network, *(["bits=uniform"] if network else [])) is None
    folder = run_folder(tmp_path)
    capsys.readouterr()
    assert run_script("evaluate.py", folder / "model.safetensors", "threads=1") is None
    row = read_json(folder / "report.json")["rows"][-1]
    printed = [cell.partition(" (mean")[0] for cell in cells(capsys.readouterr().out)[:4]]
    assert printed == [
        *(row[key] for key in ("method", "weight_bits", "activation_bits")),
        f"{row['accuracy']:.2f}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.safetensors"], "absent.safetensors does not exist"),
        (["text.safetensors"], "is not a packed network"),
        (["silent.safetensors"], "does not state its model, dataset, mean, std: .* hawq.load"),
        (["small.safetensors", "dataset=imagefolder"], "dataset.path is not set: give dataset.path="),
        (["timm.safetensors"], "'hfds/some/images', which is no option .* dataset=timm dataset.name=hfds/some/images "),
        (["small.safetensors", "dataset.path=absent.npz"], "absent.npz does not exist"),
        (
            ["small.safetensors", "dataset=cifar100", "dataset.path={data}"],
            "other shapes .* the 100 classes of cifar100",
        ),
        (["small.safetensors", "dataset.path={data}", "model.name=resnet20"], "unexpected names .*here resnet20 for"),
        (
            ["small.safetensors", "dataset.path={data}", "--against=float"],
            "float needs the trained network: .*checkpoint",
        ),
        (["small.safetensors", "dataset.path={data}", "--against=absent"], "absent does not exist"),
        (["small.safetensors", "wrokers=1"], "wrokers is not a key of the config: did you mean workers"),
        (["small.safetensors", "dataset=cifar1000"], "dataset=cifar1000 is not an option: did you mean cifar100"),
        (["small.safetensors", "dataset.path={data}", "device=tpu"], "device='tpu' is unknown"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(arguments, message, material):
    name, *overrides = (argument.format(data=material / "data.npz") for argument in arguments)
    error = run_script("evaluate.py", material / name, *overrides)
    assert error is not None and error.startswith("error: ") and len(error.splitlines()) == 1
    assert re.search(message, error), error
