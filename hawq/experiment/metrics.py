"""metrics.jsonl: every number that a run measures along the way, each written once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from hawq.errors import UserError
from hawq.experiment.artifacts import locked
from hawq.experiment.tracking import Sink, Tracking
from hawq.files import write_whole

METRICS = "metrics.jsonl"


class MetricsLog:
    """A run's metrics: one JSON line for each (stage, step), each written once however often the run is resumed.

    Every row holds the key of the artifact it was measured for. A stage whose artifact is another one than that of its
    rows, because weights or data were replaced, begins with none.

    `with MetricsLog(folder, sink) as log:` closes the sink in the end, also after an error.
    """

    def __init__(self, folder: Path, sink: Sink | None) -> None:
        self._path, self._sink = folder / METRICS, sink
        _drop_half_a_line(self._path)
        self._keys: dict[str, str] = {}
        rows = read_metrics(folder)
        self._known = {(row["stage"], row["step"]) for row in rows}
        if sink:
            sink.catch_up(rows)

    @staticmethod
    @contextmanager
    def open(folder: Path, tracking: Tracking, config: Mapping[str, Any]) -> Iterator[MetricsLog]:
        """The log of a run folder, which no other process writes to at the same time."""
        waiting = partial(print, f"another process works in {folder}; waiting for it", flush=True)
        with locked(folder / ".lock", waiting), MetricsLog(folder, tracking.open(folder, folder.name, config)) as log:
            yield log

    def begin(self, stage: str, key: str) -> None:
        """What follows of `stage` belongs to the artifact of that key; rows of another one are taken out."""
        self._keys[stage] = key
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["stage"] != stage or row.get("key", key) == key]
        if len(kept) < len(rows):
            write_whole(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self._known = {(row["stage"], row["step"]) for row in kept}

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of one step, unless this run already has that step."""
        if (stage, step) in self._known:
            return
        self._known.add((stage, step))
        key = {"key": self._keys[stage]} if stage in self._keys else {}
        row = {"stage": stage, "step": step, **metrics, **key}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._sink:
            self._sink.log(stage, step, metrics)

    def row(self, stage: str, row: Mapping[str, Any]) -> None:
        """`log` of a row of a training's history, which holds its step."""
        self.log(stage, row["step"], {key: value for key, value in row.items() if key != "step"})

    def replay(self, stage: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Rows of a stage that was found in the cache, for a run that has not seen them."""
        for row in history:
            self.row(stage, row)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table for the sink."""
        if self._sink:
            self._sink.table(name, columns, rows)

    def image(self, name: str, path: Path) -> None:
        """A figure for the sink, from its PNG file."""
        if self._sink:
            self._sink.image(name, path)

    def page(self, name: str, path: Path) -> None:
        """A page for the sink, from its HTML file."""
        if self._sink:
            self._sink.page(name, path)

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """A file that the sink keeps."""
        if self._sink:
            self._sink.artifact(name, kind, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The figures that a list of runs shows."""
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
    """All rows of a run's metrics.jsonl; a last line cut off by a kill is left out.

    Raises UserError for a line that is no row.
    """
    path = folder / METRICS
    rows = []
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            hash((row["stage"], row["step"]))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged in line {number}: move it away and type the command again") from error
        rows.append(row)
    return rows


def _drop_half_a_line(path: Path) -> None:
    """A kill may leave a last line without its end; the next row must not be written behind it."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_whole(path, data[: data.rfind(b"\n") + 1])
