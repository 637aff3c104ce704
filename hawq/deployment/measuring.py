"""What a runtime makes of a deployed file: kernels, accuracy, speed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from hawq.deployment.parity import Parity
from hawq.deployment.records import RuntimeRecord
from hawq.deployment.runtimes import OnnxRuntime, Runtime, Session, milliseconds
from hawq.deployment.tracing import INPUT
from hawq.deployment.writing import Written
from hawq.modes import eval_mode
from hawq.progress import SILENT, Progress

log = logging.getLogger(__name__)

LabelledImages = Sequence[tuple[Tensor, Tensor]]
"""Batches of (inputs (N, ...), labels (N,)); read once in PyTorch, and once per runtime."""

_SECONDS = 1.0  # of each timing


@torch.no_grad()
def reference_classes(model: nn.Module, data: LabelledImages, progress: Progress = SILENT) -> list[np.ndarray]:
    """The class of the largest output of each image, (N,) for each batch, as PyTorch computes the network."""
    found = []
    with eval_mode(model), progress.task("accuracy in PyTorch", len(data)) as task:
        for images, _ in data:
            found.append(model(images).argmax(1).cpu().numpy())
            task.advance(1)
    return found


def measure(
    runtime: Runtime,
    written: Written,
    deployed: bytes,
    floating: bytes,
    parities: Sequence[Parity],
    data: LabelledImages,
    reference: Sequence[np.ndarray],
    timed_batches: Sequence[int],
    images: Tensor,
    progress: Progress,
    *,
    must_agree: bool = True,
) -> RuntimeRecord:
    """Everything about one runtime; `reference` from `reference_classes`, no accuracy without data.

    Raises ValueError when its accuracy is worse than PyTorch's by more than chance; with `must_agree` false that is
    logged.
    """
    feeds = {INPUT: images.cpu().numpy()}
    kernels, others = runtime.kernels(deployed, feeds, written.layers)
    sessions = [runtime.open(deployed), runtime.open(floating)]
    accuracy = _accuracy(runtime.name, sessions[0], data, reference, progress, must_agree) if data else {}
    return RuntimeRecord(
        runtime=runtime.name,
        kernels={name: asdict(kernel) for name, kernel in kernels.items()},
        other_kernels=others,
        integer_layers=sum(kernel.integer for kernel in kernels.values()),
        num_layers=len(written.layers),
        differing_codes=max((one.differing for one in parities), default=0.0),
        mean_differing_codes=float(np.mean([one.differing for one in parities])) if parities else 0.0,
        largest_difference=max((one.largest for one in parities), default=0),
        milliseconds={
            str(batch): _race(sessions, images, batch) for batch in timed_batches if runtime != OnnxRuntime(False)
        },
        **accuracy,  # type: ignore[arg-type]
    )


def _race(sessions: Sequence[Session], images: Tensor, batch: int) -> dict[str, float]:
    array = images.cpu().numpy()
    feeds = {INPUT: np.concatenate([array] * (-(-batch // len(array))))[:batch]}
    ours, floating = milliseconds(sessions, feeds, _SECONDS)
    return {"deployed": round(ours, 4), "float": round(floating, 4), "speedup": round(floating / ours, 3)}


def _accuracy(
    name: str,
    session: Session,
    data: LabelledImages,
    reference: Sequence[np.ndarray],
    progress: Progress,
    must_agree: bool,
) -> dict[str, float]:
    """Accuracies in percent, standard error of their difference d over the images: √(Var d / N)."""
    right, same = [], []
    with progress.task(f"accuracy in {name}", len(data)) as task:
        for (images, labels), expected in zip(data, reference, strict=True):
            own = session({INPUT: images.cpu().numpy()})[0].argmax(1)
            truth = labels.cpu().numpy()
            right.append(np.stack([own == truth, expected == truth], 1))
            same.append(own == expected)
            task.advance(1)
    found = np.concatenate(right).astype(np.float64)  # (N, 2)
    difference = found[:, 0] - found[:, 1]
    error = float(difference.std() / np.sqrt(len(difference)))
    if -difference.mean() > 2 * error:
        worse = (
            f"{name} is right on {100 * found[:, 0].mean():.2f} % of the images and PyTorch on "
            f"{100 * found[:, 1].mean():.2f} %, more than two standard errors ({200 * error:.2f} points) apart"
        )
        if must_agree:
            raise ValueError(f"{worse}: the file does not compute what the network computes")
        log.warning("%s: it rounds biases to integers; give profile=integer, whose accuracy there is checked", worse)
    return {
        "accuracy": 100 * float(found[:, 0].mean()),
        "reference_accuracy": 100 * float(found[:, 1].mean()),
        "accuracy_error": 100 * error,
        "same_class": 100 * float(np.concatenate(same).mean()),
        "num_images": len(found),
    }
