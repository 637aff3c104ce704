"""Tracking: metrics.jsonl holds every row once, and a W&B run made offline holds everything it should show."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import REPOSITORY, command_line, page_data, read_json, run_folder

from hawq.errors import UserError
from hawq.experiment import tracking
from hawq.experiment.metrics import METRICS, MetricsLog, read_metrics
from hawq.experiment.tracking import MODES, TensorBoardTracking, WandbTracking

ROWS = [{"stage": "float_network", "step": 1, "loss": 2.5}, {"stage": "float_network", "step": 2, "loss": 2.0}]


class Heard:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.exit_code: int | None = None
        self.caught_up: list[tuple[str, int]] = []

    def catch_up(self, rows: Any) -> None:
        self.caught_up = [(row["stage"], row["step"]) for row in rows]

    def log(self, stage: str, step: int, metrics: Any) -> None:
        self.steps.append((stage, step))

    def close(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_each_step_is_recorded_once(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    with MetricsLog(tmp_path, first) as log:  # type: ignore[arg-type]
        for step, loss in ((1, 2.5), (1, 9.0), (2, 2.0)):
            log.log("float_network", step, {"loss": loss})
    with MetricsLog(tmp_path, second) as log:  # type: ignore[arg-type]
        for stage, step in (("float_network", 2), ("float_network", 3), ("analysis", 2)):
            log.log(stage, step, {"loss": 1.0})
    new = [{"stage": "float_network", "step": 3, "loss": 1.0}, {"stage": "analysis", "step": 2, "loss": 1.0}]
    assert read_metrics(tmp_path) == ROWS + new
    assert first.steps == second.caught_up == [("float_network", 1), ("float_network", 2)] and not first.caught_up
    assert second.steps == [
        ("float_network", 3),
        ("analysis", 2),
    ]


@pytest.mark.parametrize(
    "cut_off", ['{"stage": "float_network", "st', '{"stage": "float_network", "step": 3, "loss": 1.25}', "\x00\x00"]
)
def test_last_line_cut_off_by_a_kill(tmp_path: Path, cut_off: str) -> None:
    """It is left out, and what a resumed run writes after it is not lost with it."""
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in ROWS) + cut_off)
    assert read_metrics(tmp_path)[:2] == ROWS
    with MetricsLog(tmp_path, None) as log:
        for step, loss in ((2, 2.0), (3, 1.25), (4, 1.0)):
            log.log("float_network", step, {"loss": loss})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 2.5), (2, 2.0), (3, 1.25), (4, 1.0)]


def test_sink_is_closed_with_the_outcome(tmp_path: Path) -> None:
    well, badly = Heard(), Heard()
    with MetricsLog(tmp_path, well):  # type: ignore[arg-type]
        pass
    with pytest.raises(KeyboardInterrupt), MetricsLog(tmp_path, badly):  # type: ignore[arg-type]
        raise KeyboardInterrupt
    assert (well.exit_code, badly.exit_code) == (0, 1)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="auto, online, offline"):
        WandbTracking(mode="disabled")
    with pytest.raises(ValueError, match="more than 0"):
        WandbTracking(timeout_seconds=0)
    assert [WandbTracking(mode=mode).mode for mode in MODES] == list(MODES)


def test_no_tracking_never_imports_wandb(tmp_path: Path) -> None:
    """Everything goes on where an import of wandb fails. (timm imports it by itself where it can be found.)"""
    program = (
        "import sys, pathlib\n"
        "sys.modules['wandb'] = None\n"
        "import train, hawq.experiment.pipeline, hawq.experiment.tracking\n"
        f"assert hawq.experiment.tracking.NoTracking().open(pathlib.Path({str(tmp_path)!r}), 'name', {{}}) is None"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_artifact_give_way(tmp_path: Path) -> None:
    """Weights or data were replaced under the same name: the rows of what was made of them are measured again."""
    for key, losses in (("a", (3.0, 2.0)), ("a", (9.0, 9.0)), ("b", (5.0, 4.0))):
        with MetricsLog(tmp_path, None) as log:
            log.begin("analysis", "same")
            log.log("analysis", 0, {"curvature": 1.0})
            log.begin("finetune", key)
            for step, loss in enumerate(losses):
                log.log("finetune", step, {"loss": loss})
        rows = read_metrics(tmp_path)
        assert [row["stage"] for row in rows] == ["analysis", "finetune", "finetune"]
        assert [row["loss"] for row in rows[1:]] == ([5.0, 4.0] if key == "b" else [3.0, 2.0])
        assert [row["key"] for row in rows] == ["same", key, key]


@pytest.mark.parametrize("line", ["not JSON", "[1, 2]", '{"stage": "float_network"}', '{"stage": [], "step": 1}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(json.dumps(ROWS[0]) + f"\n{line}\n" + json.dumps(ROWS[1]) + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged in line 2: move it away"):
        MetricsLog(tmp_path, None)


def test_only_one_process_writes_to_a_folder(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from hawq.experiment.metrics import MetricsLog\n"
        "from hawq.experiment.tracking import NoTracking\n"
        "with MetricsLog.open(pathlib.Path(sys.argv[1]), NoTracking(), {}) as log:\n"
        "    [log.log('float_network', step, {'pid': int(sys.argv[2])}) or time.sleep(0.02) for step in range(20)]\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], cwd=REPOSITORY, stdout=subprocess.PIPE)
        for name in ("1", "2")
    ]
    texts = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({row["pid"] for row in read_metrics(tmp_path)}) == 1 and len(read_metrics(tmp_path)) == 20
    assert sum("waiting for it" in text for text in texts) <= 1


@pytest.mark.parametrize("stored", ["", "../../x", "a b", "x" * 100, "\x00"])
def test_an_id_that_is_none_is_replaced(tmp_path: Path, stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wandb_id"
    path.write_text(stored)
    made = tracking._run_id(path)
    assert re.fullmatch("[0-9a-f]{8}", made) and tracking._run_id(path) == made == path.read_text()
    assert "a new run begins" in capsys.readouterr().out


def test_a_sweep_of_wandb_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wandb_id"
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    assert tracking._run_id(path) != "fromagent"  # without a sweep a variable left over must not join runs
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert tracking._run_id(path) == "fromagent" == path.read_text()


# A real W&B run, without an account, at a terminal.


def stranger(home: Path) -> dict[str, str]:
    """The environment of someone who never logged in to W&B."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "XDG"))}
    home.mkdir()
    return {**kept, "HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_BASE_URL": "http://127.0.0.1:9"}


def run_at_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and screen of a command that believes a person is watching, and can be asked."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    screen = b""
    try:
        while piece := os.read(outer, 65536):
            screen += piece
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(outer)
    return process.wait(60), screen.decode()


def test_unreachable_server_sends_the_run_offline(tmp_path: Path) -> None:
    """Logged in, but without a network: the run goes on after the timeout."""
    program = (
        "import sys, pathlib, hawq.experiment.tracking as t\n"
        "sink = t.WandbTracking(timeout_seconds=2).open(pathlib.Path(sys.argv[1]), 'name', {'seed': 0})\n"
        "sink.log('float_network', 1, {'loss': 2.5})\n"
        "sink.close(0)"
    )
    environment = {**stranger(tmp_path / "home"), "WANDB_API_KEY": "0" * 40}
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "W&B cannot be reached" in done.stdout and f"wandb sync {wandb_folder(folder)}" in done.stdout
    (row,) = [
        values(record.history.item) for record in read_wandb(folder) if record.WhichOneof("record_type") == "history"
    ]
    assert (row["float_network/step"], row["float_network/loss"]) == (1, 2.5)


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run folder and screen of one tiny run with tracking=wandb."""
    folder = tmp_path_factory.mktemp("offline")
    command = [sys.executable, "train.py", *command_line(folder / "outputs", "tracking=wandb")]
    exit_code, screen = run_at_terminal(command, stranger(folder / "home"))
    assert exit_code == 0, screen
    return run_folder(folder / "outputs"), screen


def wandb_folder(folder: Path) -> Path:
    (found,) = (folder / "wandb").glob("offline-run-*")
    return found


def read_wandb(folder: Path) -> Iterator[Any]:
    """The records of a .wandb file: W&B's protocol buffers in LevelDB's log format (W&B 0.31 has no reader in Python).

    After a header of 7 bytes come blocks of 32 KiB, holding pieces of checksum (4), length (2), kind (1) and data;
    kind 1 is a whole record, 2, 3 and 4 are its first, middle and last piece.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = wandb_folder(folder).glob("run-*.wandb")
    data, position, record = path.read_bytes(), 7, b""
    while position < len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_a_killed_offline_run_is_whole_in_its_newest_part(tmp_path: Path) -> None:
    """W&B writes behind the run's back: what a kill takes from it is sent again by the next process."""
    program = (
        "import sys, os, pathlib, hawq.experiment.tracking as t\n"
        "folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "sink = t.WandbTracking(mode='offline').open(folder, 'name', {'seed': 0})\n"
        "from hawq.experiment.metrics import MetricsLog\n"
        "log = MetricsLog(folder, sink)\n"
        "[log.log('analysis', step, {'curvature': 1.0 + step}) for step in range(last)]\n"
        "sink.close(0) if last == 9 else os._exit(9)"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    environment = stranger(tmp_path / "home")
    for last, code in ((4, 9), (6, 9), (9, 0)):
        command = [sys.executable, "-c", program, str(folder), str(last)]
        assert subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=120).returncode == code
    found = [values(r.history.item) for r in read_wandb(folder) if r.WhichOneof("record_type") == "history"]
    assert [(row["analysis/step"], row["analysis/curvature"]) for row in found] == [(n, 1.0 + n) for n in range(9)]
    assert len(list((folder / "wandb").glob("superseded-run-*"))) == 2


def values(items: Any) -> dict[str, Any]:
    """key → value of a record's items, nested keys with dots between."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def records(offline_run: tuple[Path, str]) -> dict[str, list[Any]]:
    """Kind of record → records."""
    found: dict[str, list[Any]] = {}
    for record in read_wandb(offline_run[0]):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


@pytest.fixture(scope="module")
def history(records: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [values(record.item) for record in records["history"]]


def test_offline_run_asks_nothing_and_says_how_to_sync(offline_run: tuple[Path, str]) -> None:
    folder, screen = offline_run
    assert f"wandb sync {wandb_folder(folder)}" in screen.replace("\r\n", "")
    for question in ("Enter your choice", "API key", "account", "log in"):
        assert question not in screen


def test_offline_run_holds_the_config(offline_run: tuple[Path, str], records: dict[str, list[Any]]) -> None:
    folder, _ = offline_run
    (run,) = records["run"]
    assert (run.project, run.display_name) == ("hawq", folder.name)
    assert run.run_id == (folder / "wandb_id").read_text()
    config = values(run.config.update)
    resolved = read_json(folder / "report.json")["config"]
    assert {key: config[key] for key in resolved} == resolved


def test_offline_run_holds_every_row_of_metrics(offline_run: tuple[Path, str], history: list[dict[str, Any]]) -> None:
    rows = read_metrics(offline_run[0])
    assert {row["stage"] for row in rows} == {"float_network", "analysis", "finetune"}
    for row in rows:
        stage = row.pop("stage")
        sent = {f"{stage}/{key}": value for key, value in row.items() if key != "key"}
        assert sum(sent.items() <= logged.items() for logged in history) == 1


def test_offline_run_has_a_step_for_each_stage(records: dict[str, list[Any]]) -> None:
    steps = {metric.glob_name: metric.step_metric for metric in records["metric"] if metric.glob_name}
    assert steps == {f"{stage}/*": f"{stage}/step" for stage in ("float_network", "analysis", "finetune")}


def shown(history: list[dict[str, Any]], kind: str) -> dict[str, str]:
    """key → file, of everything of a kind that was logged."""
    return {
        key.removesuffix("._type"): row[key.removesuffix("._type") + ".path"]
        for row in history
        for key, value in row.items()
        if key.endswith("._type") and value == kind
    }


def test_offline_run_holds_the_tables(offline_run: tuple[Path, str], history: list[dict[str, Any]]) -> None:
    folder, _ = offline_run
    files = shown(history, "table-file")
    tables = {key: read_json(wandb_folder(folder) / "files" / path) for key, path in files.items()}
    assert set(tables) == {"sensitivity", "plan", "results"}
    precisions = read_json(folder / "plan.json")["precisions"]
    assert tables["plan"]["data"] == [[name, *bits.values()] for name, bits in precisions.items()]
    sensitivity = read_json(folder / "sensitivity.json")["rows"]
    found = [dict(zip(tables["sensitivity"]["columns"], row, strict=True)) for row in tables["sensitivity"]["data"]]
    assert [(row["block"], row["eigenvalue"]) for row in found] == [
        (row["block"]["name"], row["eigenvalue"]["value"]) for row in sensitivity
    ]


def test_offline_run_holds_the_figures(offline_run: tuple[Path, str], history: list[dict[str, Any]]) -> None:
    folder, _ = offline_run
    figures = shown(history, "image-file")
    assert len(figures) == 3
    sent = {(wandb_folder(folder) / "files" / path).read_bytes() for path in figures.values()}
    assert sent == {path.read_bytes() for path in (folder / "figures").glob("*.png")}


def test_offline_run_shows_the_report(offline_run: tuple[Path, str], history: list[dict[str, Any]]) -> None:
    """The same page, so the same figures from the same data."""
    folder, _ = offline_run
    (path,) = shown(history, "html-file").values()
    assert (wandb_folder(folder) / "files" / path).read_text() == (folder / "report.html").read_text()


def test_no_key_is_logged_as_two_kinds_of_media(history: list[dict[str, Any]]) -> None:
    """W&B draws one panel for a key: a picture logged under a table's key takes the table's place."""
    assert set(shown(history, "table-file")) & set(shown(history, "image-file")) == set()
    assert set(shown(history, "html-file")) & {*shown(history, "table-file"), *shown(history, "image-file")} == set()


def test_offline_run_holds_artifacts_and_summary(offline_run: tuple[Path, str], records: dict[str, list[Any]]) -> None:
    folder, _ = offline_run
    kinds = {artifact.type for artifact in records["artifact"]} - {"run_table"}  # W&B's own, one a table
    assert kinds == {"plan", "report", "model"}
    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary |= values(record.update)
    rows = read_json(folder / "report.json")["rows"]
    assert (summary["float_accuracy"], summary["accuracy"]) == (rows[0]["accuracy"], rows[-1]["accuracy"])
    assert records["exit"][0].exit_code == 0


# TensorBoard, which needs no account either.


def test_tensorboard_holds_every_metric_under_the_same_name(tmp_path: Path) -> None:
    """Also after a kill: the next process writes again what the first one had recorded."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last in (3, 5):
        with MetricsLog.open(tmp_path, TensorBoardTracking(), {"seed": 0}) as log:
            for step in range(last):
                log.log("finetune/direct", step, {"loss": 1.0 / (1 + step), "accuracy": 10.0 * step})
            log.table("plan", ("block", "bits"), [("conv1", 4)])
            log.summary({"accuracy": 91.5})
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert {"finetune/direct/loss", "finetune/direct/accuracy", "accuracy"} == set(found.Tags()["scalars"])
    losses = [(one.step, one.value) for one in found.Scalars("finetune/direct/loss")]
    assert losses == [(step, pytest.approx(1.0 / (1 + step))) for step in range(5)]
    assert found.Scalars("accuracy")[0].value == pytest.approx(91.5)
    text = b"".join(found.Tensors("plan/text_summary")[0].tensor_proto.string_val).decode()
    assert text.splitlines() == ["| block | bits |", "| --- | --- |", "| conv1 | 4 |"]


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs TensorBoard: pip install .* or give tracking=none"):
        TensorBoardTracking().open(tmp_path, "name", {})


# W&B sweeps.


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_wandb_sweep_gives_commands_that_run(path: Path) -> None:
    """The command that W&B's own agent makes of each sweep, with the ends of every parameter, is one that we take."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    from hawq.experiment.config.build import compose_parts

    sweep = yaml.safe_load(path.read_text())
    assert sweep["program"] == "train.py" and sweep["metric"]["name"] == "accuracy"
    for end in (0, -1):
        drawn = {
            key: {"value": one["values"][end] if "values" in one else one["min" if end == 0 else "max"]}
            for key, one in sweep["parameters"].items()
        }
        arguments = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
        command = [
            part for word in sweep["command"] for part in (arguments if word == "${args_no_hyphens}" else [word])
        ]
        assert command[:3] == ["${env}", "${interpreter}", "${program}"]
        parts = compose_parts(command[3:])
        for key, one in drawn.items():
            section, _, name = key.partition(".")
            value = getattr(parts[section], name) if name else getattr(parts["options"], section)
            assert value == pytest.approx(one["value"])


AGENT = """
import json, sys
from wandb.wandb_agent import Agent

command, program, drawn = json.loads(sys.argv[1])
agent = Agent(api=None, queue=None, sweep_id="s1")
agent._sweep_command = command
agent._command_run({"run_id": "drawn1", "program": program, "args": drawn})
sys.exit(agent._run_processes["drawn1"].wait())
"""
"""W&B's own agent, which starts what a server hands out; here it is told by hand, because there is no server."""


@pytest.fixture(scope="module")
def agents_run(offline_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that W&B's agent started for conf/sweep/bits.yaml; it shares the cache of another run."""
    outputs, folder = offline_run[0].parent.parent, tmp_path_factory.mktemp("agent")
    sweep = yaml.safe_load((REPOSITORY / "conf" / "sweep" / "bits.yaml").read_text())
    drawn = {key: {"value": one["values"][0]} for key, one in sweep["parameters"].items()}
    command = [*sweep["command"], *command_line(outputs, "experiment=smoke", "tracking=wandb")]
    environment = {**stranger(folder / "home"), "WANDB_SWEEP_ID": "s1", "WANDB_DIR": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # it types `python`
    before = set((outputs / "runs").iterdir())
    started = [sys.executable, "-c", AGENT, json.dumps([command, sweep["program"], drawn])]
    done = subprocess.run(started, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (found,) = set((outputs / "runs").iterdir()) - before
    return found


def test_wandb_agent_runs_a_job_of_the_sweep(agents_run: Path) -> None:
    """The server would know the run by the agent's id, and find in it the parameters that it had handed out."""
    records = list(read_wandb(agents_run))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.sweep_id) == ("drawn1", "s1")
    config = read_json(agents_run / "report.json")["config"]
    assert (config["bits"]["target"], config["seed"]) == (8, 0)
    sent = values(run.config.update)
    assert (sent["bits"]["target"], sent["seed"]) == (8, 0)
    (ended,) = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert ended == 0


def test_wandb_holds_what_the_report_of_an_agents_run_shows(agents_run: Path) -> None:
    """Figures and tables, read back from the offline files, against the data that the page is drawn from."""
    files = wandb_folder(agents_run) / "files"
    rows = [values(one.history.item) for one in read_wandb(agents_run) if one.WhichOneof("record_type") == "history"]
    tables = {key: read_json(files / path)["data"] for key, path in shown(rows, "table-file").items()}
    data = page_data(agents_run / "report.html")
    results = [(row["method"], f"{row['accuracy']:.2f}", row["size"]) for row in data["results"]]
    assert [(row[0], row[3], row[5]) for row in tables["results"]] == results and len(results) == 2
    blocks = data["strip"]["blocks"]
    assert [(row[0], row[1]) for row in tables["plan"]] == [(block["name"], block["bits"]) for block in blocks]
    assert [row[:2] for row in tables["sensitivity"]] == [[block["name"], block["weights"]] for block in blocks]
    accuracy = [
        [row["finetune/step"], row["finetune/accuracy"]] for row in rows if row.get("finetune/accuracy") is not None
    ]
    assert accuracy == data["training"]["lines"][0]["accuracy"] != []
    pictures = {(files / path).read_bytes() for path in shown(rows, "image-file").values()}
    assert pictures == {path.read_bytes() for path in (agents_run / "figures").glob("*.png")} and len(pictures) == 3
    (page,) = shown(rows, "html-file").values()
    assert (files / page).read_bytes() == (agents_run / "report.html").read_bytes()
