"""The float network: loaded, or trained first; its weights are what every later key builds on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from hawq.distributed import broadcast
from hawq.evaluation import measured
from hawq.experiment.artifacts import Artifact, hash_tensors
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.finetuning import Row, Training, fit
from hawq.models import read_checkpoint, write_checkpoint
from hawq.records import Measured, Phase, from_dict, to_dict
from hawq.weights import load_strictly

ACCURACY_FORMAT = "classes"  # what accuracy.json holds beside the accuracy; files of earlier versions do not


@dataclass(frozen=True)
class FloatNetwork:
    """The trained float network, a hash of its weights, and what was measured of it on the test images."""

    network: nn.Module
    weights_hash: str
    measured: Measured

    @property
    def accuracy(self) -> float:
        """On the test images, in percent."""
        return self.measured.accuracy


def float_network(run: Run) -> FloatNetwork:
    """The network as loaded, or trained first when no checkpoint was given; and its test accuracy."""
    inputs, network = run.inputs, run.inputs.network
    if inputs.model.normalization is None:
        reads = ("float_network", "seed")
        artifact = cached(run, "float_network", partial(_train, run), reads=reads, network=None)
        path = kept_file(artifact, run.settings.float_network, "float.safetensors", "best.safetensors")
        load_strictly(network, read_checkpoint(path, None).state, str(path))
        run.log.replay("float_network", artifact.read_json("history.json"))
    network.eval()
    weights_hash = hash_tensors(network.state_dict())
    artifact = cached(
        run,
        "float_network",
        partial(_measure, run),
        reads=(),
        network=weights_hash,
        facts={"result": ACCURACY_FORMAT},
        label="float_network/accuracy",
    )
    found = FloatNetwork(network, weights_hash, from_dict(artifact.read_json("accuracy.json"), Measured))
    print(f"float accuracy: {found.accuracy:.2f} %")
    return found


def kept_file(artifact: Artifact, settings: Training, last: str, best: str) -> Any:
    """The file of the network that a run goes on with; a training that measured nothing has no best one."""
    path = artifact.path / best
    return path if settings.keep == "best" and path.is_file() else artifact.path / last


def _train(run: Run, settings: KeyedSettings, artifact: Artifact) -> Files:
    inputs, training = run.inputs, settings.float_network
    best: dict[str, Any] = {}
    history = broadcast(partial(shared_training, training=training, seed=settings.seed))(
        inputs,
        evaluate=lambda candidate: inputs.test_accuracy(
            candidate, training.eval_samples, run.progress, "accuracy during training"
        ),
        checkpoint=artifact.partial,
        on_row=partial(run.log.row, "float_network"),
        on_best=best.update,
        progress=run.progress,
        title="training the float network",
    )
    files = {
        "float.safetensors": write_checkpoint(inputs.network, inputs.normalization),
        "history.json": json.dumps(history).encode(),
    }
    if best:
        inputs.network.load_state_dict(best)
        files["best.safetensors"] = write_checkpoint(inputs.network, inputs.normalization)
    return files


def shared_training(inputs: Inputs, training: Training, seed: int, **callbacks: Any) -> list[Row]:
    """Trains the float network. Every process calls this; callbacks are given to the first one alone."""
    data = inputs.training_data(training.batch_size, seed)
    phases = [Phase((), (), training.num_steps(data.steps_per_epoch), training.lr, 0.0)]
    return fit(inputs.network, phases, data, training, seed=seed, **callbacks)


def _measure(run: Run, settings: KeyedSettings, artifact: Artifact) -> Files:
    title = "accuracy of the float network"
    found = measured(*run.inputs.test_classes(run.inputs.network, progress=run.progress, title=title))
    return {"accuracy.json": json.dumps(to_dict(found)).encode()}
