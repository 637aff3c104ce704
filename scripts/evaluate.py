"""Accuracy of a packed file, measured again: `python scripts/evaluate.py model.safetensors dataset.path=cifar10.npz`.

Network, data set and preparation of the images stand in the file. Overrides are those of train.py: `dataset.path=...`,
`device=cuda`, `workers=4`, or another `dataset=...` with the same classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hawq.costs import published_bytes
from hawq.data import Images
from hawq.evaluation import accuracy_on
from hawq.experiment.config.build import component_section, compose_parts
from hawq.experiment.config.names import REPOSITORY
from hawq.experiment.progress import Console
from hawq.export import load, read_about
from hawq.records import Normalization, Preprocessing, from_dict
from hawq.report import recorded_accuracy, result_row, results_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="model.safetensors of a run, or one of docs/results")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, say dataset.path=cifar10.npz")
    given = parser.parse_args()
    try:
        print(evaluate(given.file, given.overrides))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def evaluate(path: Path, overrides: list[str]) -> str:
    """The row of the file as a table, on what it was measured, and the accuracy that a record beside it states.

    Raises ValueError or FileNotFoundError, with one sentence, where file, data set and network do not fit each other.
    """
    about = read_about(path)
    normalization = normalization_of(path, about)
    parts = compose_parts([*stated(about, overrides), *overrides])
    options, dataset = parts["options"], parts["dataset"]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = options.torch_device()
    with component_section("dataset", dataset):
        splits = dataset.open()
    with component_section("model", parts["model"]):
        source = parts["model"].build(splits.num_classes)
    stored = about.get("preprocessing", about.get("framing"))  # its name until 2026-11
    preprocessing = from_dict(stored, Preprocessing) if stored else source.preprocessing
    try:
        network: nn.Module = load(path, source.network.to(device, memory_format=torch.channels_last))
    except ValueError as error:
        here = f"{parts['model'].name} for the {splits.num_classes} classes of {dataset.name}"
        raise ValueError(f"{error} (here {here})") from error
    images = Images(splits.test_images, splits.test_labels, dataset.prepare(preprocessing, normalization))
    accuracy = accuracy_on(network, images, device, options.workers, Console(), f"accuracy of {path.name}")
    size_bytes = path.stat().st_size
    row = result_row(network.quantization.plan, accuracy, size_bytes, published_bytes(source.network.state_dict()))  # type: ignore
    right = round(accuracy * len(images) / 100)
    seen = f"{right:,} of {len(images):,} test images of {dataset.name} are right; {size_bytes:,} bytes on disk"
    lines = [results_table([row]), seen]
    recorded = recorded_accuracy(path)
    if recorded is not None and dataset.name == about["dataset"]:
        value, origin = recorded
        lines.append(f"recorded: {value:.2f} % ({origin}); difference {accuracy - value:+.2f} points")
    return "\n".join(lines)


def normalization_of(path: Path, about: dict[str, Any]) -> Normalization:
    """How the inputs are normalised. Raises ValueError for a file that does not say what it is."""
    missing = [key for key in ("model", "dataset", "mean", "std") if key not in about]
    if missing:
        raise ValueError(
            f"{path} does not state its {', '.join(missing)}: give a file that train.py wrote, "
            "or load this one with hawq.load(path, model)"
        )
    return from_dict({"mean": about["mean"], "std": about["std"]}, Normalization)


def stated(about: dict[str, Any], overrides: list[str]) -> list[str]:
    """What a file says, as overrides; the data set only where no other is given.

    Raises ValueError for a data set that has no option of its own: a file does not hold its splits and classes.
    """
    found = ["tracking=none", "model=timm", f"model.name={about['model']}"]
    if about.get("source") == "torchvision":
        found.append("model.source=torchvision")
    if stored := about.get("preprocessing", about.get("framing")):  # its name until 2026-11
        fixed = stored.get("fixed_size", False)
        found.append(f"model.small_input_size={int(about.get('small_input_size', stored['size']))}")
        found += [f"model.input_size={int(stored['size'])}"] if fixed else []
    other = any(override.startswith("dataset=") for override in overrides)
    if other:
        return found
    name = about["dataset"]
    if not (REPOSITORY / "conf" / "dataset" / f"{name}.yaml").is_file():
        raise ValueError(
            f"the file was measured on {name!r}, which is no option of dataset: give it as the run was given it, say "
            f"dataset=timm dataset.name={name} dataset.num_classes=..."
        )
    return [*found, f"dataset={name}"]


if __name__ == "__main__":
    main()
