"""Deployed files against float, ONNX Runtime's static INT8 and Brevitas' QCDQ, in one run: a table in Markdown.

    python scripts/benchmark_deploy.py dataset.path=cifar10.npz deploy.eval_images=10000

Takes the five packed ResNet20 of docs/results unless files are given with --files. Brevitas takes part where it and
onnxoptimizer are installed. All runtimes have one thread and
take turns; a time is the least of many.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from evaluate import facts_of, stated
from torch.fx.proxy import TraceError

from hawq.data import Images, fixed_batches, sample_indices
from hawq.deployment import available, deploy, float_model
from hawq.deployment.measuring import reference_classes
from hawq.deployment.rivals import Rival, brevitas_qcdq, measured, static_int8
from hawq.experiment.config.build import compose_parts
from hawq.experiment.config.names import REPOSITORY
from hawq.experiment.stages.deploy import labelled_batches
from hawq.export import load, read_about

_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, say dataset.path=cifar10.npz")
    parser.add_argument("--files", type=Path, nargs="+", help="packed files")
    given = parser.parse_intermixed_args()
    named = [str(one) for one in given.files or []]
    overrides = [*given.overrides, *(one for one in named if "=" in one)]  # --files takes all that follows it
    files = [Path(one) for one in named if "=" not in one] or sorted(
        (REPOSITORY / "docs" / "results").glob("resnet20*.safetensors")
    )
    print("| file | bytes | runtime | layers in integers | accuracy % | same class % | speed, batch 1 / 64 |")
    print("|---|---|---|---|---|---|---|")
    try:
        for path in files:
            for row in benchmark(path, overrides):
                print(row, flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def benchmark(path: Path, overrides: list[str]) -> list[str]:
    """Rows of the table for one packed file; "same class" is agreement with the quantised network in PyTorch."""
    facts = facts_of(path, read_about(path))
    parts = compose_parts(["deploy=onnx", *stated(facts, overrides), *overrides])
    wanted, dataset = parts["deploy"], parts["dataset"]
    splits = dataset.open()
    source = parts["model"].build(splits.num_classes)
    prepare = dataset.prepare(facts.preprocessing or source.preprocessing, facts.normalization)
    network = load(path, source.network)
    train = Images(splits.train_images, splits.train_labels, prepare)
    indices = sample_indices(len(train), wanted.calibration_images, parts["options"].seed)
    calibration = [images for images, _ in fixed_batches(train, indices, _BATCH, torch.device("cpu"))]
    data = labelled_batches(Images(splits.test_images, splits.test_labels, prepare), wanted.eval_images)
    example = data[0][0][:32]
    runtimes = [one for one in available() if one.name in ("onnxruntime", "openvino")]
    rows = []
    for profile in ("exact", "integer"):
        folder = Path("outputs") / "benchmark_deploy" / path.stem / profile
        try:
            found = deploy(
                network, folder / "model.onnx", example, profile=profile, calibration=calibration, data=data,
                runtimes=runtimes,
            )  # fmt: skip
        except ValueError as refusal:
            rows.append(f"| {path.stem}: {profile} | refused: {refusal} | | | | | |")
            continue
        for one in found.runtimes:
            speed = " / ".join(f"{times['speedup']:.2f}" for times in one.milliseconds.values())
            rows.append(
                f"| {path.stem}: {profile} | {found.size_bytes:,} | {one.runtime} | {one.integer_layers} of "
                f"{one.num_layers} | {one.accuracy:.2f} (PyTorch {one.reference_accuracy:.2f}) | {one.same_class:.2f} "
                f"| {speed} |"
            )
    floating = float_model(network, example, wanted.opset)
    rivals = [
        Rival("the same weights in float", floating),
        Rival("ONNX Runtime's static INT8 of them", static_int8(floating, calibration)),
    ]
    if find_spec("brevitas") and find_spec("onnxoptimizer"):
        try:
            rivals.append(Rival("Brevitas' QCDQ, calibrated", brevitas_qcdq(network, calibration)))
        except (AssertionError, TraceError) as refusal:  # one bit, or a network that torch.fx cannot list
            rows.append(f"| {path.stem}: Brevitas refuses it ({refusal}) | | | | | | |")
    reference = reference_classes(network, data)
    for rival in rivals:
        rows += [f"| {path.stem}: {row}" for row in measured(rival, floating, reference, data, runtimes)]
    return rows


if __name__ == "__main__":
    main()
