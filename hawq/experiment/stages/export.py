"""The export: a packed file per network, read back and measured on the whole test set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hawq.evaluation import measured
from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.finetune import Tuned, label, network_folder
from hawq.experiment.stages.float_network import ACCURACY_FORMAT, FloatNetwork
from hawq.export import PACKED_SCHEMA, load, save
from hawq.files import write_whole
from hawq.records import Measured, from_dict, to_dict


@dataclass(frozen=True)
class Packed:
    """A packed file, what was measured from it on the test images, and its bytes on disk."""

    artifact: Artifact
    measured: Measured
    size_bytes: int


def export(run: Run, float_network: FloatNetwork, finetune: dict[str, Tuned]) -> dict[str, Packed]:
    """Name → packed file, of every network that was fine-tuned; the run folder gets a copy of each."""
    packed = {}
    for name, tuned in finetune.items():
        facts = {
            "schema": PACKED_SCHEMA,
            "finetune": tuned.artifact.key,
            "keep": run.settings.finetune.keep,
            "about": run.inputs.about,
            "result": ACCURACY_FORMAT,
        }
        make, stage = partial(_pack, run, float_network, tuned), label("export", name)
        weights = float_network.weights_hash
        artifact = cached(run, "export", make, reads=("export",), network=weights, facts=facts, label=stage)
        found = from_dict(artifact.read_json("accuracy.json"), Measured)
        packed[name] = Packed(artifact, found, (artifact.path / "model.safetensors").stat().st_size)
        for path in artifact.files():
            if path.suffix == ".safetensors":
                write_whole(network_folder(run.folder, name) / path.name, path.read_bytes())
    return packed


def _pack(run: Run, float_network: FloatNetwork, tuned: Tuned, settings: KeyedSettings, artifact: Artifact) -> Files:
    inputs, example = run.inputs, run.inputs.example()
    path = save(tuned.network, artifact.path / "model.safetensors", inputs.about)
    restored = load(path, float_network.network)
    _refuse_other_outputs(tuned.network, restored, example)
    title = f"accuracy of the packed file ({tuned.plan.method})"
    found = measured(*inputs.test_classes(restored, progress=run.progress, title=title))
    return {"model.safetensors": path.read_bytes(), "accuracy.json": json.dumps(to_dict(found)).encode()}


@torch.no_grad()
def _refuse_other_outputs(tuned: nn.Module, restored: nn.Module, example: Tensor) -> None:
    difference = float((tuned(example) - restored(example)).abs().max())
    assert difference <= 1e-4, f"the packed file computes something else (largest difference {difference})"
