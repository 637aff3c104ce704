"""The cache of stage results: the one place that knows what a key is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hawq.components import component_facts
from hawq.errors import UserError
from hawq.experiment.artifacts import Artifact
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.run import Run
from hawq.experiment.table import NAMES, left_out
from hawq.measurement import measured
from hawq.records import StageRecord, to_dict

FORMAT = 5  # raised when a stage computes something else from the same settings: old artifacts are then left alone

Files = dict[str, bytes]


class KeyedSettings:
    """The settings that an artifact's key holds; a stage that makes the artifact can read no others.

    So no setting can change a result without changing its key.
    """

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        self._settings, self._names = settings, tuple(names)

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"the key does not hold {name}: name it in `reads`")
        return self._settings.options.seed if name == "seed" else getattr(self._settings, name)

    def facts(self) -> dict[str, Any]:
        """Name → what a result depends on, JSON-ready."""
        return {name: self.seed if name == "seed" else component_facts(getattr(self, name)) for name in self._names}


def cached(
    run: Run,
    stage: str,
    make: Callable[[KeyedSettings, Artifact], Files],
    *,
    reads: Sequence[str],
    network: str | None,
    facts: Mapping[str, Any] | None = None,
    label: str | None = None,
) -> Artifact:
    """A stage's artifact, made now unless it exists; its provenance goes to the run's records.

    The key hashes the stage, the data, the model and its blocks, the weights of the float network, the settings in
    `reads`, and `facts`. Where the artifact lies, device, threads and tracking are no part of it.

    Args:
        stage: row of the table, the artifact's folder.
        make: the files of the artifact, from the settings in `reads` alone.
        reads: sections of the config, and "seed".
        network: hash of the float network's weights; None for what is not made of a trained network.
        facts: whatever else the result depends on, JSON-ready: settings that are derived, keys of other artifacts.
        label: what records and metrics call it, where a stage makes several artifacts.

    Raises:
        UserError: the artifact must be made, and a stage that depends on it was not selected; or it is damaged.
    """
    settings = KeyedSettings(run.settings, reads)
    key = _shared_facts(run.inputs, network) | settings.facts() | dict(facts or {})
    artifact = run.inputs.store.artifact(stage, key)
    with artifact.locked():
        manifest = artifact.manifest()
        reused = manifest is not None
        if manifest is None:
            _refuse_gap(stage, run.settings)
            run.log.begin(label or stage, artifact.key)
            with measured() as cost:
                files = make(settings, artifact)
            manifest = {
                "seconds": round(artifact.partial.earlier_seconds + cost.seconds, 2),
                "peak_memory_mib": cost.peak_memory_mib,
                "depends_on": key,
            }
            artifact.finish(files, manifest)
    if reused:
        run.log.begin(label or stage, artifact.key)
        print(f"{label or stage}: found in the cache ({artifact.key})")
    record = StageRecord(label or stage, artifact.key, reused, manifest["seconds"], manifest["peak_memory_mib"])
    run.records.append(record)
    return artifact


def _shared_facts(inputs: Inputs, network: str | None) -> dict[str, Any]:
    """What every artifact depends on."""
    shared = {
        "format": FORMAT,
        "model": inputs.model_name,
        "dataset": component_facts(inputs.dataset),
        "num_classes": inputs.splits.num_classes,
        **inputs.data_facts,
    }
    if network is None:
        return shared
    return shared | {"weights": network, "blocks": [to_dict(block) for block in inputs.blocks]}


def _refuse_gap(stage: str, settings: Settings) -> None:
    """Before any work: whatever depends on the stage that is to be made must have been selected too."""
    from hawq.reconstruction import Reconstruction

    selected = settings.options.stages
    options = {
        "reconstruction": isinstance(settings.reconstruction, Reconstruction),
        "tuning": bool(settings.tuning.epochs),
    }
    asked = [name for name, wanted in options.items() if wanted]
    absent = left_out(stage, selected, asked)
    if absent:
        named = [name for name in NAMES if name in (*selected, *absent)]
        raise UserError(
            f"stages={list(selected)} leaves out {', '.join(absent)}, whose result for these settings is not in the "
            f"cache: give stages={named}"
        )
