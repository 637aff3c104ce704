"""Tuning: every reconstructed network, trained around its codes by the float network's outputs."""

from __future__ import annotations

from functools import partial

from torch import nn

from hawq.experiment.artifacts import Artifact
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import KeyedSettings
from hawq.experiment.stages.finetune import network_plans
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.experiment.stages.reconstruction import Reconstructed, reconstructed
from hawq.quantization import attach
from hawq.reconstruction import Row, tune
from hawq.records import BitPlan, Sensitivity

_REVISION = 1  # raised when the same settings give another network: older artifacts are then left alone


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
        start = reconstruction[name]
        make = partial(_make, run, float_network, plan, start)
        facts = {"reconstruction": start.artifact.key, "revision": _REVISION}
        tuned[name] = reconstructed(run, "tuning", name, plan, float_network, make, facts)
    return tuned


def _make(
    run: Run,
    float_network: FloatNetwork,
    plan: BitPlan,
    start: Reconstructed,
    called: str,
    settings: KeyedSettings,
    artifact: Artifact,
) -> tuple[nn.Module, list[Row]]:
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
        on_row=partial(run.log.row, called),
        progress=run.progress,
        title=f"tuning ({plan.method})",
    )
    return network, rows
