"""Accuracy of a packed file, measured again: `python scripts/evaluate.py model.safetensors dataset.path=cifar10.npz`.

Network, data set and preparation of the images stand in the file. Overrides are those of train.py: `dataset.path=...`,
`device=cuda`, `workers=4`, or another `dataset=...` with the same classes. With `--against float`, or another packed
file of the same network, both are compared on the same images: accuracies with the 95 % interval of their paired
difference, the share in the same class, and the mean KL, which tells more than accuracy does where images are few.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawq.costs import published_bytes
from hawq.data import Images
from hawq.evaluation import batches_on, measured
from hawq.experiment.config.build import component_section, compose_parts
from hawq.experiment.config.names import config_folder
from hawq.experiment.progress import Console
from hawq.export import load, read_about
from hawq.malloc import keep_freed_memory
from hawq.models import FloatModel
from hawq.modes import eval_mode
from hawq.progress import Task
from hawq.records import Normalization, Preprocessing, from_dict
from hawq.report import agreement, paired_difference, recorded_accuracy, result_row, results_table
from hawq.trials import divergence, log_probabilities, mean_with_error

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # no path, no hub, nothing that a config resolves
SAFE_TEXT = re.compile(r"[A-Za-z0-9_./:-]+")
MOST_PIXELS = 10_000  # along one side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="model.safetensors of a run, or one of docs/results")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, say dataset.path=cifar10.npz")
    parser.add_argument("--against", action="append", default=[], metavar="FILE", help="float, or a packed file")
    given = parser.parse_intermixed_args()
    keep_freed_memory()
    try:
        print(evaluate(given.file, given.overrides, given.against))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def evaluate(path: Path, overrides: list[str], against: Sequence[str] = ()) -> str:
    """The row of the file as a table, on what it was measured, the accuracy that a record beside it states, and a line
    for each network that it is compared with: "float" or a packed file.

    Raises ValueError or FileNotFoundError, with one sentence, where file, data set and network do not fit each other.
    """
    about = read_about(path)
    facts = facts_of(path, about)
    parts = compose_parts([*stated(facts, overrides), *overrides])
    options, dataset = parts["options"], parts["dataset"]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = options.torch_device()
    with component_section("dataset", dataset):
        splits = dataset.open()
    with component_section("model", parts["model"]):
        source = parts["model"].build(splits.num_classes)
    preprocessing = facts.preprocessing or source.preprocessing
    try:
        network: nn.Module = load(path, source.network.to(device, memory_format=torch.channels_last))
    except ValueError as error:
        here = f"{parts['model'].name} for the {splits.num_classes} classes of {dataset.name}"
        raise ValueError(f"{error} (here {here})") from error
    others = [_other(name, source) for name in against]
    images = Images(splits.test_images, splits.test_labels, dataset.prepare(preprocessing, facts.normalization))
    batches = batches_on(images, device, options.workers)
    with Console().task(f"accuracy of {path.name}", len(images)) as task:
        labels, classes, kl = outcomes([network, *others], batches, task)
    found = measured(classes[0], labels)
    size_bytes = path.stat().st_size
    row = result_row(network.quantization.plan, found, size_bytes, published_bytes(source.network.state_dict()))  # type: ignore
    right = len(images) - len(found.wrong or ())
    seen = f"{right:,} of {len(images):,} test images of {dataset.name} are right; {size_bytes:,} bytes on disk"
    lines = [results_table([row]), seen]
    recorded = recorded_accuracy(path)
    if recorded is not None and dataset.name == facts.dataset:
        value, origin = recorded
        lines.append(f"recorded: {value:.2f} % ({origin}); difference {found.accuracy - value:+.2f} points")
    lines += [_compared(name, labels, classes[[0, place]], kl[place - 1]) for place, name in enumerate(against, 1)]
    return "\n".join(lines)


def _other(name: str, source: FloatModel) -> nn.Module:
    """What a packed file is compared with. Raises as `evaluate` does."""
    if name != "float":
        return load(Path(name), source.network)
    if source.normalization is None:
        raise ValueError("--against float needs the trained network: give model.checkpoint=... as for train.py")
    return source.network


@torch.no_grad()
def outcomes(
    networks: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]], task: Task
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N,), the class that each network puts each image into (networks, N), and the KL from the outputs of each
    network but the first to those of the first (networks − 1, N), in one pass over the images."""
    truth, classes, kl = [], [], []
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(eval_mode(network))
        for inputs, labels in batches:
            first, *others = (network(inputs) for network in networks)
            truth.append(labels.cpu())
            classes.append(torch.stack([one.argmax(1) for one in (first, *others)]).cpu())
            own = [divergence(log_probabilities(one), log_probabilities(first)) for one in others]
            kl.append(torch.stack(own) if own else torch.zeros(0, len(labels)))
            task.advance(len(labels))
    return torch.cat(truth), torch.cat(classes, 1), torch.cat(kl, 1)


def _compared(name: str, labels: Tensor, classes: Tensor, kl: Tensor) -> str:
    """A network and another one, whose classes are (2, N), on the same images, in one line."""
    own, other = (measured(one, labels) for one in classes)
    difference, same = paired_difference(own, other), agreement(own, other)
    assert difference is not None and same is not None
    mean, error = mean_with_error(kl)
    return (
        f"against {name} ({other.accuracy:.2f} %): {difference.value:+.2f} points "
        f"(95 %: {difference.low:+.2f} to {difference.high:+.2f}), {same:.2f} % in the same class, "
        f"KL from its outputs {mean:.4g} ± {error:.2g}"
    )


@dataclass(frozen=True)
class Facts:
    """What a packed file says of its network and data, checked: it may come from anyone, and a config is made of it."""

    model: str
    dataset: str
    normalization: Normalization
    preprocessing: Preprocessing | None
    torchvision: bool
    small_input_size: int | None


def facts_of(path: Path, about: dict[str, Any]) -> Facts:
    """The facts of a file. Raises ValueError for one that does not say what it is, or states what cannot be."""
    missing = [key for key in ("model", "dataset", "mean", "std") if key not in about]
    if missing:
        raise ValueError(
            f"{path} does not state its {', '.join(missing)}: give a file that train.py wrote, "
            "or load this one with hawq.load(path, model)"
        )
    normalization = from_dict({"mean": about["mean"], "std": about["std"]}, Normalization)
    stored = about.get("preprocessing", about.get("framing"))  # its name until 2026-11
    preprocessing = from_dict(stored, Preprocessing) if stored else None
    sizes = [about.get("small_input_size"), preprocessing.size if preprocessing else None]
    names = [about["model"], about["dataset"]]
    channels = (len(normalization.mean), len(normalization.std))
    if (
        not all(isinstance(name, str) and 0 < len(name) < 200 for name in names)
        or not all(size is None or (type(size) is int and 0 < size <= MOST_PIXELS) for size in sizes)
        or channels not in ((3, 3), (1, 1))
        or min(normalization.std) <= 0
        or (preprocessing is not None and not 0 < preprocessing.crop <= 2)
    ):
        raise ValueError(
            f"{path} states a name, a size or a normalisation that cannot be: give a file that train.py wrote"
        )
    torchvision = about.get("source") == "torchvision"
    return Facts(about["model"], about["dataset"], normalization, preprocessing, torchvision, sizes[0])


def stated(facts: Facts, overrides: list[str]) -> list[str]:
    """What a file says, as overrides; model and data set only where no other is given.

    Raises ValueError for names that are no plain ones (a config would resolve or download what they say), and for a
    data set that has no option of its own: a file does not hold its splits and classes.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    found = ["tracking=none", "model=timm"]
    if "model.name" not in given:
        if not PLAIN_NAME.fullmatch(facts.model):
            raise ValueError(f"the file names the model {facts.model!r}, which is no plain name: give model.name=...")
        found.append(f"model.name={facts.model}")
    if facts.torchvision:
        found.append("model.source=torchvision")
    if facts.preprocessing:
        found.append(f"model.small_input_size={facts.small_input_size or facts.preprocessing.size}")
        found += [f"model.input_size={facts.preprocessing.size}"] if facts.preprocessing.fixed_size else []
    if "dataset" in given:
        return found
    name = facts.dataset
    if not PLAIN_NAME.fullmatch(name) or not (config_folder() / "dataset" / f"{name}.yaml").is_file():
        raise ValueError(
            f"the file was measured on {name!r}, which is no option of dataset: give it as the run was given it, say "
            f"dataset=timm dataset.name={name if SAFE_TEXT.fullmatch(name) else '...'} dataset.num_classes=..."
        )
    return [*found, f"dataset={name}"]


if __name__ == "__main__":
    main()
