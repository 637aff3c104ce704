"""A packed file as an ONNX file for runtimes: `python scripts/deploy.py model.safetensors dataset.path=cifar10.npz`.

Writes `model.onnx` and `deploy.json` into --folder (the packed file's name, unless given). Network, data set and
preparation of the images stand in the packed file. Overrides are those of train.py: `deploy.profile=integer`,
`deploy=dyadic`, `dataset.path=...`, `deploy.eval_images=1000`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from evaluate import facts_of, stated

from hawq.data import Images, fixed_batches, sample_indices
from hawq.experiment.config.build import compose_parts
from hawq.experiment.progress import Console
from hawq.experiment.stages.deploy import labelled_batches, write_deployment
from hawq.export import load, read_about
from hawq.malloc import keep_freed_memory

_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="model.safetensors of a run, or one of docs/results")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, say deploy.profile=integer")
    parser.add_argument("--folder", type=Path, help="where the files go")
    given = parser.parse_intermixed_args()
    keep_freed_memory()
    try:
        print(deploy_file(given.file, given.overrides, given.folder or Path(given.file.stem)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def deploy_file(path: Path, overrides: list[str], folder: Path) -> str:
    """Deploys a packed file into `folder`; what was found, as text.

    Raises ValueError or FileNotFoundError, with one sentence, where file, data set and network do not fit each other,
    or where a check fails.
    """
    facts = facts_of(path, read_about(path))
    chosen = [] if any(one.startswith("deploy=") for one in overrides) else ["deploy=onnx"]
    parts = compose_parts([*chosen, *stated(facts, overrides), *overrides])
    options, dataset, wanted = parts["options"], parts["dataset"], parts["deploy"]
    if not hasattr(wanted, "calibration_images"):
        raise ValueError("deploy=none writes nothing: give deploy=onnx or deploy=dyadic")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    splits = dataset.open()
    source = parts["model"].build(splits.num_classes)
    prepare = dataset.prepare(facts.preprocessing or source.preprocessing, facts.normalization)
    network = load(path, source.network)
    train = Images(splits.train_images, splits.train_labels, prepare)
    indices = sample_indices(len(train), min(wanted.calibration_images, len(train)), options.seed)
    calibration = [images for images, _ in fixed_batches(train, indices, _BATCH, torch.device("cpu"))]
    data = labelled_batches(Images(splits.test_images, splits.test_labels, prepare), wanted.eval_images)
    files = write_deployment(wanted, network, calibration, data, folder, Console())
    return f"{files['deploy.txt'].decode()}\n{', '.join(str(folder / name) for name in files if name != 'deploy.txt')}"


if __name__ == "__main__":
    main()
