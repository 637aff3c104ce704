"""Artifacts: under a key of what they depend on, whole or not at all, and never used when something is wrong."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hawq.errors import UserError
from hawq.experiment.artifacts import MANIFEST, Artifact, PartialCheckpoint, Store, fingerprint, hash_tensors
from hawq.records import Estimate, dump_record, read_record

FACTS = {"seed": 0, "solver": {"name": "power", "tolerance": 0.01}}
FILES = {"curvature.json": b'{"value": 1.5}', "history.json": b"[]"}


@pytest.fixture
def entry(tmp_path: Path) -> Artifact:
    return Store(tmp_path).artifact("analysis", FACTS)


@pytest.fixture
def done(entry: Artifact) -> Artifact:
    entry.finish(FILES, {"seconds": 1.0})
    return entry


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    turned = {"solver": {"tolerance": 0.01, "name": "power"}, "seed": 0}
    assert list(turned) != list(FACTS) and fingerprint(turned) == fingerprint(FACTS)


@pytest.mark.parametrize(
    "other",
    [
        {**FACTS, "seed": 1},
        {**FACTS, "seed": None},
        {**FACTS, "more": 0},
        {"seed": 0, "solver": {"name": "power", "tolerance": 0.010001}},
        {"seed": 0, "solver": ["power", 0.01]},
    ],
)
def test_fingerprint_depends_on_every_value(other: dict[str, Any]) -> None:
    assert fingerprint(other) != fingerprint(FACTS)


def test_hash_of_tensors_sees_names_shapes_types_and_values() -> None:
    base = torch.arange(6.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 3)},
        {"a": base.double()},
        {"a": base + 1},
        {"a": base, "b": base},
    ]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
    strided = torch.stack([base, base], 1)[:, 0]
    assert hash_tensors({"b": base, "a": strided}) == hash_tensors({"a": base, "b": base})


def test_entry_counts_only_once_it_is_finished(entry: Artifact) -> None:
    assert entry.manifest() is None and entry.files() == []
    entry.partial.save({"step": 3})
    assert entry.manifest() is None
    entry.finish(FILES, {"seconds": 1.0})
    manifest = entry.manifest()
    assert manifest is not None
    assert (manifest["stage"], manifest["key"], manifest["seconds"]) == ("analysis", entry.key, 1.0)
    assert {path.name: path.read_bytes() for path in entry.files()} == FILES
    assert entry.read_json("curvature.json") == {"value": 1.5}
    assert entry.partial.load() is None


def test_same_facts_find_the_artifact_again(done: Artifact, tmp_path: Path) -> None:
    assert Store(tmp_path).artifact("analysis", dict(reversed(FACTS.items()))).manifest() is not None
    assert Store(tmp_path).artifact("finetune", FACTS).manifest() is None
    assert Store(tmp_path).artifact("analysis", {**FACTS, "seed": 1}).manifest() is None


def change(content: dict[str, Any]) -> Callable[[Path], Any]:
    """Writes other values into a manifest."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | content))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "changed": ("curvature.json", lambda path: path.write_bytes(b'{"value": 2.5}')),
    "cut": ("curvature.json", lambda path: path.write_bytes(path.read_bytes()[:-3])),
    "gone": ("history.json", lambda path: path.unlink()),
    "manifest cut": (MANIFEST, lambda path: path.write_bytes(path.read_bytes()[:40])),
    "manifest empty": (MANIFEST, lambda path: path.write_bytes(b"")),
    "manifest binary": (MANIFEST, lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "manifest a list": (MANIFEST, lambda path: path.write_text("[]")),
    "manifest half": (MANIFEST, lambda path: path.write_text('{"files": {}}')),
    "manifest without files": (MANIFEST, change({"files": []})),
    "other stage": (MANIFEST, change({"stage": "finetune"})),
    "other key": (MANIFEST, change({"key": "0123456789abcdef"})),
    "other schema": (MANIFEST, change({"schema": "hawq.artifact/99"})),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_or_foreign_artifact_is_named_and_left(
    done: Artifact, name: str, damage: Callable[[Path], Any]
) -> None:
    damage(done.path / name)
    before = {path: path.read_bytes() for path in done.path.iterdir()}
    with pytest.raises(UserError) as caught:
        done.manifest()
    assert str(done.path / name) in str(caught.value) and "move" in str(caught.value)
    assert {path: path.read_bytes() for path in done.path.iterdir()} == before


def test_record_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "estimate.json"
    path.write_bytes(dump_record("hawq.estimate/1", Estimate(1.5, 0.1, 7, True)))
    assert read_record(path, "hawq.estimate/1", Estimate) == Estimate(1.5, 0.1, 7, True)
    for content in (
        path.read_text().replace("/1", "/2"),
        path.read_text()[:-5],
        path.read_text().replace("1.5", '"a"'),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=r"estimate\.json cannot be used"):
            read_record(path, "hawq.estimate/1", Estimate)


def states_of(entry: Artifact) -> list[Path]:
    return sorted(entry.path.glob("progress-*"))


def test_newest_half_done_state_wins(entry: Artifact, tmp_path: Path) -> None:
    entry.partial.save({"step": 1, "weights": torch.ones(3)})
    (first,) = states_of(entry)
    kept = shutil.copy(first, tmp_path / first.name)
    entry.partial.save({"step": 2, "weights": torch.zeros(3)})
    assert first not in states_of(entry)
    shutil.copy(kept, first)  # as after a kill between writing the new state and removing the old one
    state = entry.partial.load()
    assert state is not None and state["step"] == 2 and torch.equal(state["weights"], torch.zeros(3))
    entry.partial.save({"step": 3})
    assert len(states_of(entry)) == 1 and entry.partial.load() == {"step": 3}


def test_time_of_ended_processes_counts(entry: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("hawq.experiment.artifacts.time.monotonic", lambda: now[0])

    def found() -> PartialCheckpoint:
        again = PartialCheckpoint(entry.path)
        assert again.load() == {"step": 1} and again.load() == {"step": 1}
        return again

    first = PartialCheckpoint(entry.path)
    now[0] += 30
    first.save({"step": 1})
    now[0] += 500  # nobody works
    second = found()
    assert second.earlier_seconds == 30
    now[0] += 10
    second.save({"step": 1})
    assert found().earlier_seconds == 40


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data[:100] + b"x" + data[101:]])
def test_damaged_half_done_state_is_named_and_left(entry: Artifact, damage: Callable[[bytes], bytes]) -> None:
    entry.partial.save({"step": 1, "weights": torch.ones(300)})
    (path,) = states_of(entry)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="damaged") as caught:
        entry.partial.load()
    assert str(path) in str(caught.value) and path.exists()


def test_temporary_file_left_by_a_kill_is_ignored(entry: Artifact) -> None:
    entry.partial.save({"step": 1})
    (path,) = states_of(entry)
    for name in (path.name.replace("00000001", "00000002"), MANIFEST, "curvature.json"):
        (entry.path / f".{name}.4321.tmp").write_bytes(b"half")
    assert entry.partial.load() == {"step": 1} and entry.manifest() is None
    entry.finish(FILES, {})
    assert {file.name for file in entry.files()} == set(FILES)


def hold(root: Path, wanted: Any, got: Any) -> None:
    """In another process: takes the artifact when told to, and says when it has it."""
    wanted.wait(10)
    with Store(root).artifact("analysis", FACTS).locked():
        got.set()


def test_second_process_waits_for_the_first(entry: Artifact, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wanted, got = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, wanted, got))
    other.start()
    with entry.locked():
        wanted.set()
        assert not got.wait(0.3)
        with Store(tmp_path).artifact("analysis", {**FACTS, "seed": 1}).locked():
            pass  # another key is free
    assert got.wait(10)
    other.join(10)
    assert other.exitcode == 0
