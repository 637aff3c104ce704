"""The stage deploy, from the command line and from a packed file alone."""

import json

import onnx
import pytest
from runs import run_folder, run_here, run_script

STAGES = "stages=[analysis,allocation,finetune,export,deploy,report]"


@pytest.mark.usefixtures("operators_read_once")
def test_the_stage_writes_a_checked_file(tmp_path):
    wanted = ("deploy=onnx", "deploy.timed_batches=[]", "deploy.eval_images=20", STAGES)
    assert run_here(tmp_path, *wanted) is None
    folder = run_folder(tmp_path)
    report = json.loads((folder / "deploy.json").read_text())
    assert report["size_bytes"] == (folder / "model.onnx").stat().st_size
    assert all(one["num_images"] == 20 for one in report["runtimes"])
    assert onnx.load(folder / "model.onnx").opset_import[0].version == 21
    target = tmp_path / "alone"
    arguments = ("deploy.timed_batches=[]", "--folder", target, "deploy.eval_images=20", "dataset=digits")
    assert run_script("deploy.py", folder / "model.safetensors", *arguments) is None
    assert (target / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("export.onnx=true", ["export.onnx is gone", "deploy=onnx"]),
        ("+export.onnx=true", ["export.onnx is gone", "deploy=onnx"]),
    ],
)
def test_the_old_key_says_where_it_went(argument, parts, tmp_path):
    message = run_here(tmp_path, argument)
    assert message is not None and all(part in message for part in parts)


@pytest.mark.parametrize("value", ["deploy.profile=fast", "deploy.opset=13", "deploy.eval_images=0"])
def test_wrong_settings_are_refused(value, tmp_path):
    message = run_here(tmp_path, "deploy=onnx", value)
    assert message is not None and value.partition("=")[0] in message


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "benchmark_deploy.py",
            ["--files", "absent.safetensors", "dataset=digits"],
            "absent.safetensors does not exist",
        ),
        ("benchmark_deploy.py", ["dataset=digits", "--files", __file__], "is not a packed network"),
        ("benchmark_deploy.py", ["dataset.path=absent.npz"], "absent.npz does not exist"),
        ("benchmark_deploy_networks.py", ["resnet999:32"], "resnet999"),
        ("benchmark_deploy_networks.py", ["resnet20:wide"], "resnet20:wide: the side of its inputs is no whole number"),
    ],
)
def test_benchmarks_refuse_bad_input_in_one_line(script, arguments, message):
    error = run_script(script, *arguments)
    assert error is not None and error.startswith("error: ") and len(error.splitlines()) == 1 and message in error
