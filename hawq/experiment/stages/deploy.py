"""Deployment: a file that runtimes compute in integers, checked and measured; or a report of integers alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from hawq.data import Images
from hawq.deployment import DyadicReport, OnnxDeployment, integer_network, runtime_versions
from hawq.deployment import deploy as deploy_network
from hawq.experiment.artifacts import Artifact, write_json
from hawq.experiment.run import Run
from hawq.experiment.stages.cache import Files, KeyedSettings, cached
from hawq.experiment.stages.export import Packed
from hawq.experiment.stages.finetune import Tuned, label, network_folder
from hawq.experiment.stages.float_network import FloatNetwork
from hawq.export import load
from hawq.files import write_whole
from hawq.progress import Progress

_EXAMPLES = 32
_BATCH = 100


@dataclass(frozen=True)
class DeployedFiles:
    """Where the files of one network's deployment lie."""

    artifact: Artifact


def deploy(
    run: Run, float_network: FloatNetwork, finetune: dict[str, Tuned], export: dict[str, Packed]
) -> dict[str, DeployedFiles]:
    """Name → deployment, of every network that was packed; the run folder gets a copy. Empty with deploy=none."""
    found = {}
    wanted = run.settings.deploy
    for name, packed in export.items() if isinstance(wanted, (OnnxDeployment, DyadicReport)) else ():
        make = partial(_write, run, float_network, packed)
        facts = {"export": packed.artifact.key, "runtimes": runtime_versions()}
        artifact = cached(
            run,
            "deploy",
            make,
            reads=("deploy", "seed"),
            network=float_network.weights_hash,
            facts=facts,
            label=label("deploy", name),
        )
        for path in artifact.files():
            write_whole(network_folder(run.folder, name) / path.name, path.read_bytes())
        print((artifact.path / "deploy.txt").read_text())
        found[name] = DeployedFiles(artifact)
    return found


def _write(run: Run, float_network: FloatNetwork, packed: Packed, settings: KeyedSettings, artifact: Artifact) -> Files:
    network = load(packed.artifact.path / "model.safetensors", float_network.network).cpu()
    wanted, inputs = settings.deploy, run.inputs
    calibration = [one.cpu() for one in inputs.calibration(wanted.calibration_images, _BATCH, settings.seed)]
    data = labelled_batches(inputs.test_images(), wanted.eval_images)
    return write_deployment(wanted, network, calibration, data, artifact.path, run.progress)


def write_deployment(
    wanted: OnnxDeployment | DyadicReport,
    network: nn.Module,
    calibration: list[Tensor],
    data: list[tuple[Tensor, Tensor]],
    folder: Path,
    progress: Progress,
) -> Files:
    """The files of a deployment, made in `folder`: model.onnx and deploy.json, or dyadic.json; and deploy.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(wanted, DyadicReport):
        report = integer_network(network, calibration, multiplier_bits=wanted.multiplier_bits).report(data, progress)
        write_json(folder / "dyadic.json", report.to_json())
        return {"dyadic.json": (folder / "dyadic.json").read_bytes(), "deploy.txt": str(report).encode()}
    found = deploy_network(
        network,
        folder / "model.onnx",
        data[0][0][:_EXAMPLES],
        profile=wanted.profile,
        calibration=calibration,
        data=data,
        opset=wanted.opset,
        timed_batches=wanted.timed_batches,
        progress=progress,
    )
    files = {name: (folder / name).read_bytes() for name in ("model.onnx", "deploy.json")}
    return files | {"deploy.txt": str(found).encode()}


def labelled_batches(images: Images, num_images: int | None) -> list[tuple[Tensor, Tensor]]:
    """(inputs, labels) of the first images, or of all, on the CPU, where runtimes compute."""
    from torch.utils.data import DataLoader, Subset

    count = min(num_images or len(images), len(images))
    return list(DataLoader(Subset(images, range(count)), _BATCH))  # type: ignore[arg-type]
