"""Tracking: every metric goes to metrics.jsonl; Weights & Biases is a view of it."""

from __future__ import annotations

import json
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from hawq.components import component
from hawq.files import write_whole

METRICS = "metrics.jsonl"
MODES = ("auto", "online", "offline")


class Sink(Protocol):
    """Where a run's metrics, tables and pictures are shown beside the run folder."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def image(self, name: str, path: Path) -> None: ...

    def artifact(self, name: str, kind: str, path: Path) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, exit_code: int) -> None: ...


class Tracking(Protocol):
    """Opens a sink for one run, or none."""

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None: ...


@component("tracking/none")
@dataclass(frozen=True)
class NoTracking:
    """The run folder alone."""

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        return None


@component("tracking/wandb")
@dataclass(frozen=True)
class WandbTracking:
    """One Weights & Biases run for each run folder.

    Args:
        project: W&B project.
        mode: "auto" is online where the machine is logged in and offline elsewhere; "online" or "offline" force it.
        timeout_seconds: how long going online may take before the run goes offline instead.

    Raises:
        ValueError: an unknown mode or a timeout that is not positive.
    """

    project: str = "hawq"
    mode: str = "auto"
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode!r} is unknown: give {', '.join(MODES)}")
        if not self.timeout_seconds > 0:
            raise ValueError(f"tracking.timeout_seconds={self.timeout_seconds} is out of range: give more than 0")

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        return _WandbSink(self, folder, name, config)


class _WandbSink:
    """A W&B run, continued when the folder already holds its id."""

    def __init__(self, settings: WandbTracking, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # here, so that tracking=none never imports it

        self._wandb = wandb
        id_file = folder / "wandb_id"
        run_id = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
        id_file.write_text(run_id)
        options = {"project": settings.project, "dir": str(folder), "name": name, "id": run_id, "config": dict(config)}
        mode = _choose_mode(settings.mode)
        self._run = self._start(mode, options, settings.timeout_seconds)
        self._stages: set[str] = set()
        if self._run.settings._offline:
            print(f"W&B is offline; to upload this run later: wandb sync {Path(self._run.dir).parent}")

    def _start(self, mode: Any, options: dict[str, Any], timeout: float) -> Any:
        settings = self._wandb.Settings(init_timeout=timeout, silent=True, console="off")
        try:
            return self._wandb.init(
                mode=mode, resume="allow" if mode == "online" else None, settings=settings, **options
            )
        except (self._wandb.errors.CommError, self._wandb.errors.UsageError) as error:
            print(f"W&B cannot be reached ({str(error).splitlines()[0]}); going on offline")
            self._wandb.teardown()  # else W&B still holds the id of the run it could not start
            return self._wandb.init(mode="offline", settings=settings, **options)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step} | {f"{stage}/{key}": value for key, value in metrics.items()})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def image(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def artifact(self, name: str, kind: str, path: Path) -> None:
        artifact = self._wandb.Artifact(name, type=kind)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _choose_mode(mode: str) -> str:
    """Online where WANDB_API_KEY or a netrc entry says who we are; WANDB_MODE wins over "auto"."""
    if mode != "auto":
        return mode
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if _is_logged_in() else "offline"


def _is_logged_in() -> bool:
    """Whether a key is configured; asks no server and no person."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(name).expanduser() if name else None
        if path and path.is_file():
            host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
            try:
                return netrc.netrc(str(path)).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False


class MetricsLog:
    """A run's metrics: one JSON line for each (stage, step), each written once however often the run is resumed.

    `with RunLog(folder, sink) as log:` closes the sink in the end, also after an error.
    """

    def __init__(self, folder: Path, sink: Sink | None) -> None:
        self._path, self._sink = folder / METRICS, sink
        _drop_half_a_line(self._path)
        self._known = {(row["stage"], row["step"]) for row in read_metrics(folder)}

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of one step, unless this run already has that step."""
        if (stage, step) in self._known:
            return
        self._known.add((stage, step))
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **metrics}) + "\n")
        if self._sink:
            self._sink.log(stage, step, metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._sink:
            self._sink.table(name, columns, rows)

    def image(self, name: str, path: Path) -> None:
        if self._sink:
            self._sink.image(name, path)

    def artifact(self, name: str, kind: str, path: Path) -> None:
        if self._sink:
            self._sink.artifact(name, kind, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        if self._sink:
            self._sink.summary(values)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink:
            self._sink.close(0 if error is None else 1)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl; a last line cut off by a kill is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().split("\n")[:-1] if path.is_file() else []:
        rows.append(json.loads(line))
    return rows


def _drop_half_a_line(path: Path) -> None:
    """A kill may leave a last line without its end; the next row must not be written behind it."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_whole(path, data[: data.rfind(b"\n") + 1])
