"""Tuning: every reconstructed network, trained around its codes by the float network's outputs."""

from __future__ import annotations

import json
from functools import partial

from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.finetune import label, network_plans, to_bytes
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.experiment.stages.reconstruction import Reconstructed, read_state
from hawq.quantization import attach
from hawq.reconstruction import tune
from hawq.records import BitPlan, Sensitivity, to_dict


def tuning(
    run: Run,
    float_network: FloatNetwork,
    analysis: Sensitivity,
    allocation: BitPlan,
    reconstruction: dict[str, Reconstructed],
) -> dict[str, Reconstructed]:
    """Name → state, of every network that is fine-tuned or exported; as reconstructed with tuning.epochs=0."""
    if not run.settings.tuning.epochs:
        return reconstruction
    tuned = {}
    for name, plan in network_plans(run, analysis, allocation).items():
        start, stage = reconstruction[name], label("tuning", name)
        artifact = cached(
            run,
            "tuning",
            partial(_make, run, float_network, plan, start, stage),
            reads=("tuning", "quantizer", "seed"),
            network=float_network.weights_hash,
            facts={"bits": to_dict(plan.precisions), "reconstruction": start.artifact.key},
            label=stage,
        )
        run.log.replay(stage, artifact.read_json("epochs.json"))
        tuned[name] = Reconstructed(read_state(run, artifact), artifact)
    return tuned


def _make(
    run: Run,
    float_network: FloatNetwork,
    plan: BitPlan,
    start: Reconstructed,
    stage: str,
    settings: KeyedSettings,
    artifact: Artifact,
) -> Files:
    wanted, inputs = settings.tuning, run.inputs
    network = attach(float_network.network, inputs.blocks, plan, settings.quantizer)
    network.load_state_dict(start.state)
    rows = tune(
        float_network.network,
        network,
        inputs.calibration(wanted.num_samples, wanted.batch_size, settings.seed),
        wanted,
        seed=settings.seed,
        checkpoint=artifact.partial,
        on_row=partial(run.log.row, stage),
        progress=run.progress,
        title=f"tuning ({plan.method})",
    )
    return {"network.pt": to_bytes(network.state_dict()), "epochs.json": json.dumps(rows).encode()}
