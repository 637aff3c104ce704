"""Tracking: where metrics.jsonl is shown besides; Weights & Biases is a view of it."""

from __future__ import annotations

import netrc
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import yaml

from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.errors import UserError
from hawq.files import write_whole

_ROWS = "metrics_rows"  # how many rows of metrics.jsonl a W&B run has received
_ID = r"[A-Za-z0-9_-]{1,64}"
MODES = ("auto", "online", "offline")


class Sink(Protocol):
    """Where a run's metrics, tables and pictures are shown beside the run folder."""

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the rows that earlier processes of this run have recorded, unless it surely has them."""
        ...

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step of a stage."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of numbers and texts."""
        ...

    def image(self, name: str, path: Path) -> None:
        """A figure, from its PNG file."""
        ...

    def page(self, name: str, path: Path) -> None:
        """A self-contained HTML page."""
        ...

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """A file that is kept with the run."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """The figures that a list of runs shows."""
        ...

    def close(self, exit_code: int) -> None:
        """Ends the run; 0 when all went well."""
        ...


class Tracking(Protocol):
    """Opens a sink for one run, or none."""

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        """The sink of the run in `folder`, continued where there was one; None for none."""
        ...


@component("tracking/none")
@dataclass(frozen=True)
class NoTracking:
    """The run folder alone."""

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        """None."""
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
        check_choice("mode", self.mode, MODES)
        check_range("timeout_seconds", self.timeout_seconds, above=0, most=3600)

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        """A run online where the machine is logged in, offline elsewhere; never a prompt."""
        return _WandbSink(self, folder, name, config)


@component("tracking/tensorboard")
@dataclass(frozen=True)
class TensorBoardTracking:
    """TensorBoard's files in the run folder: no account, no network. `tensorboard --logdir outputs/runs` shows them.

    Metrics have the names that W&B shows.
    """

    def open(self, folder: Path, name: str, config: Mapping[str, Any]) -> Sink | None:
        """A writer that begins anew from metrics.jsonl. Raises UserError where TensorBoard is not installed."""
        if find_spec("tensorboard") is None:
            raise UserError(
                'tracking=tensorboard needs TensorBoard: pip install ".[tensorboard]", or give tracking=none'
            )
        return _TensorBoardSink(folder / "tensorboard", config)


class _TensorBoardSink:
    """Event files of one run; those of earlier processes hold a part of what this one writes, and are removed."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, so that other tracking never imports it

        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._folder, self._writer = folder, SummaryWriter(str(folder))
        self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```")

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self.log(row["stage"], row["step"], {k: v for k, v in row.items() if k not in ("stage", "step", "key")})

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{key}", value, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        self._writer.add_text(name, "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))

    def image(self, name: str, path: Path) -> None:
        from numpy import asarray
        from PIL import Image

        with Image.open(path) as opened:
            self._writer.add_image(name, asarray(opened.convert("RGB")), dataformats="HWC")

    def page(self, name: str, path: Path) -> None:
        self._writer.add_text(name, f"{path}: open it in a browser")

    def artifact(self, name: str, kind: str, path: Path) -> None:
        self._writer.add_text(f"files/{kind}", str(path))

    def summary(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, 0)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class _WandbSink:
    """A W&B run, continued when the folder already holds its id."""

    def __init__(self, settings: WandbTracking, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # here, so that tracking=none never imports it

        self._wandb = wandb
        run_id = _run_id(folder / "wandb_id")
        earlier = [path for path in (folder / "wandb").glob("offline-run-*") if path.is_dir()]
        options = {"project": settings.project, "dir": str(folder), "name": name, "id": run_id, "config": dict(config)}
        mode = _choose_mode(settings.mode)
        self._run = self._start(mode, options, settings.timeout_seconds)
        self._stages: set[str] = set()
        self._offline = bool(self._run.settings._offline)
        self._rows = 0
        if self._offline:
            _set_aside(earlier)
            print(f"W&B is offline; to upload this run later: wandb sync {Path(self._run.dir).parent}")

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """An offline part holds the run from its beginning; a server says how many rows it has received."""
        received = 0 if self._offline else int(self._run.summary.get(_ROWS) or 0)
        self._rows = min(received, len(rows))
        for row in rows[self._rows :]:
            self.log(row["stage"], row["step"], {k: v for k, v in row.items() if k not in ("stage", "step", "key")})

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
        self._rows += 1
        own = {f"{stage}/step": step, _ROWS: self._rows}
        self._run.log(own | {f"{stage}/{key}": value for key, value in metrics.items()})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def image(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def page(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def artifact(self, name: str, kind: str, path: Path) -> None:
        artifact = self._wandb.Artifact(name, type=kind)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _run_id(path: Path) -> str:
    """The id of this folder's W&B run, made and stored on the first call. One that W&B could not take is replaced.

    In a W&B sweep it is the one that the agent hands out, by which the server knows the run.
    """
    given = os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""
    if re.fullmatch(_ID, given):
        write_whole(path, given.encode())
        return given
    stored = path.read_text(errors="replace").strip() if path.is_file() else ""
    if re.fullmatch(_ID, stored):
        return stored
    if path.is_file():
        print(f"{path} holds no id of a W&B run: a new run begins")
    made = secrets.token_hex(4)
    write_whole(path, made.encode())
    return made


def _set_aside(earlier: Sequence[Path]) -> None:
    """Parts that a killed process left: the new one holds all that they do, and only one should be uploaded."""
    for path in earlier:
        if not any(path.glob("*.synced")):
            path.rename(path.with_name(path.name.replace("offline-run-", "superseded-run-")))


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
