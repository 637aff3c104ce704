"""The reconstruction: every network's roundings and steps, chosen without labels; fine-tuning begins with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.finetune import label, network_plans, to_bytes
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.reconstruction import Reconstruction, Row, reconstruct
from hawq.records import BitPlan, Sensitivity, to_dict

_ROWS = "units.json"
_REVISION = 5  # raised when the same settings give another network: older artifacts are then left alone


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
        make, facts = partial(_make, run, float_network, plan), {"revision": _REVISION}
        found[name] = reconstructed(run, "reconstruction", name, plan, float_network, make, facts)
    return found


def reconstructed(
    run: Run,
    stage: str,
    name: str,
    plan: BitPlan,
    float_network: FloatNetwork,
    make: Callable[[str, KeyedSettings, Artifact], tuple[nn.Module, list[Row]]],
    facts: Mapping[str, Any],
) -> Reconstructed:
    """One network's state as a stage leaves it, from the cache or made now.

    Args:
        stage: whose section of the config is read, beside the quantiser and the seed.
        make: the network and the rows of the metrics, from what these call the stage of this network.
        facts: whatever the result depends on besides, and the plan.
    """
    called = label(stage, name)

    def files(settings: KeyedSettings, artifact: Artifact) -> Files:
        network, rows = make(called, settings, artifact)
        return {"network.pt": to_bytes(network.state_dict()), _ROWS: json.dumps(rows).encode()}

    artifact = cached(
        run,
        stage,
        files,
        reads=(stage, "quantizer", "seed"),
        network=float_network.weights_hash,
        facts={"bits": to_dict(plan.precisions), **facts},
        label=called,
    )
    run.log.replay(called, artifact.read_json(_ROWS))
    state = torch.load(artifact.path / "network.pt", map_location=run.inputs.device, weights_only=True)
    return Reconstructed(state, artifact)


def _make(
    run: Run, float_network: FloatNetwork, plan: BitPlan, called: str, settings: KeyedSettings, artifact: Artifact
) -> tuple[nn.Module, list[Row]]:
    wanted, inputs = settings.reconstruction, run.inputs
    return reconstruct(
        float_network.network,
        inputs.blocks,
        plan,
        inputs.calibration(wanted.num_samples, wanted.batch_size, settings.seed),
        wanted,
        quantizer=settings.quantizer,
        seed=settings.seed,
        checkpoint=artifact.partial,
        on_row=partial(run.log.row, called),
        progress=run.progress,
        title=f"reconstruction ({plan.method})",
    )
