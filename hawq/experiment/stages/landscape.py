"""A part of the analysis, for the report: the loss along the top eigenvector of the blocks of largest curvature."""

from __future__ import annotations

import json
from functools import partial
from math import sqrt
from typing import Any

from hawq.curvature import BlockHessian, Slice, landscape
from hawq.distributed import broadcast, broadcast_parameters
from hawq.experiment.artifacts import Artifact
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.files import write_whole
from hawq.records import MEASURED, BlockSensitivity, Sensitivity, to_dict
from hawq.sensitivity import Analysis, block_weights, labelled

LANDSCAPE_SCHEMA = "hawq.landscape/1"
_BLOCKS, _BITS = 3, 4


def write_landscape(run: Run, float_network: FloatNetwork, sensitivity: Sensitivity) -> None:
    """`landscape.json` in the run folder. Each block is moved by at most ‖ΔW‖ of rounding it to 4 bits."""
    rows = sorted(sensitivity.rows, key=_sharpness, reverse=True)
    reach = {row.block.name: sqrt(row.weight_errors[_BITS]) for row in rows if row.weight_errors.get(_BITS, 0) > 0}
    reach = dict(list(reach.items())[:_BLOCKS])
    if not reach:
        return
    facts = {"result": "landscape", "reach": reach, "bits": _BITS, **run.settings.analysis.loss_facts()}
    make, weights = partial(_measure, run, reach, sensitivity.loss), float_network.weights_hash
    artifact = cached(
        run, "analysis", make, reads=("analysis", "seed"), network=weights, facts=facts, label="landscape"
    )
    write_whole(run.folder / "landscape.json", (artifact.path / "landscape.json").read_bytes())


def _sharpness(row: BlockSensitivity) -> float:
    """The curvature that was found of a block; its error where none was."""
    found = [estimate.value for name in MEASURED if (estimate := row.curvature(name))]
    return found[0] if found else row.weight_errors.get(_BITS, 0.0)


def _measure(run: Run, reach: dict[str, float], loss: float, settings: KeyedSettings, artifact: Artifact) -> Files:
    work = partial(shared_landscape, reach=reach, wanted=settings.analysis, seed=settings.seed)
    slices: list[Slice] = broadcast(work)(run.inputs)
    content: dict[str, Any] = {"schema": LANDSCAPE_SCHEMA, "bits": _BITS, "loss": loss}
    content["blocks"] = [to_dict(one) for one in slices]
    return {"landscape.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()}


def shared_landscape(inputs: Inputs, reach: dict[str, float], wanted: Analysis, seed: int) -> list[Slice]:
    """The slices of the first process' network. Every process calls this and reads its own share of the samples."""
    broadcast_parameters(inputs.network)
    network = inputs.network.eval()
    parameters = {block.name: block_weights(network, block) for block in inputs.blocks if block.name in reach}
    loss = wanted.loss_function()
    batches = labelled(network, inputs.fixed_batches(wanted.num_samples, wanted.batch_size, seed), loss)
    operator = BlockHessian(network, parameters, batches, loss)
    return landscape(operator, reach, seed)
