"""The reconstruction: every network's roundings and steps, chosen without labels; fine-tuning begins with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.finetune import label, network_plans, to_bytes
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.reconstruction import Reconstruction, reconstruct
from hawq.records import BitPlan, Sensitivity, to_dict

_REVISION = 4  # raised when the same settings give another network: older artifacts are then left alone


@dataclass(frozen=True)
class Reconstructed:
    """The state of a reconstructed network, and its artifact."""

    state: dict[str, Any]
    artifact: Artifact


def reconstruction(
    run: Run, float_network: FloatNetwork, analysis: Sensitivity, allocation: BitPlan
) -> dict[str, Reconstructed]:
    """Name → state, of every network that is tuned, fine-tuned or exported; empty with reconstruction=none."""
    found = {}
    wanted = isinstance(run.settings.reconstruction, Reconstruction)
    for name, plan in network_plans(run, analysis, allocation).items() if wanted else ():
        stage = label("reconstruction", name)
        artifact = cached(
            run,
            "reconstruction",
            partial(_make, run, float_network, plan, stage),
            reads=("reconstruction", "quantizer", "seed"),
            network=float_network.weights_hash,
            facts={"bits": to_dict(plan.precisions), "revision": _REVISION},
            label=stage,
        )
        run.log.replay(stage, artifact.read_json("units.json"))
        found[name] = Reconstructed(read_state(run, artifact), artifact)
    return found


def read_state(run: Run, artifact: Artifact) -> dict[str, Any]:
    """That of an artifact's network, on the run's device."""
    state: dict[str, Any] = torch.load(artifact.path / "network.pt", map_location=run.inputs.device, weights_only=True)
    return state


def _make(
    run: Run, float_network: FloatNetwork, plan: BitPlan, stage: str, settings: KeyedSettings, artifact: Artifact
) -> Files:
    wanted, inputs = settings.reconstruction, run.inputs
    network, rows = reconstruct(
        float_network.network,
        inputs.blocks,
        plan,
        inputs.calibration(wanted.num_samples, wanted.batch_size, settings.seed),
        wanted,
        quantizer=settings.quantizer,
        seed=settings.seed,
        checkpoint=artifact.partial,
        on_row=partial(run.log.row, stage),
        progress=run.progress,
        title=f"reconstruction ({plan.method})",
    )
    return {"network.pt": to_bytes(network.state_dict()), "units.json": json.dumps(rows).encode()}
