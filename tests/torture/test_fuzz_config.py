"""Hostile values in a config, and damaged artifacts: one sentence that names them, or a run that means what it says."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from runs import compose_here

from hawq.errors import UserError
from hawq.experiment.artifacts import MANIFEST, Artifact, Store
from hawq.experiment.config.build import build_parts
from hawq.experiment.config.names import plain

HOSTILE = (
    *(None, True, False, "", " ", "x", "-1", "nan", "${oc.env:HOME}", "../../etc/passwd", "\x00", "é" * 1000),
    *(0, -1, 1, 0.5, -0.5, 1e308, -1e308, 10**30, float("nan"), float("inf"), float("-inf")),
    *([], [0], [None], ["x"], [[]], [-1, 2], {}, {"a": 1}, {"_target_": "os.system"}, {"a": {"b": []}}),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in nested mappings and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def put(node: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


def config_outcome(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> str:
    """ "built", "told", or what went wrong, for one hostile value."""
    mutated = copy.deepcopy(config)
    put(mutated, path, value)
    try:
        build_parts(mutated)
        return "built"
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        names = str(path[0]) in text or str(path[-1]) in text or "stands inside a component" in text
        return "told" if names and len(text.splitlines()) == 1 else f"badly told: {path} = {value!r}: {text[:200]}"
    except Exception as error:
        return f"traceback: {path} = {value!r}: {type(error).__name__}: {error}"


def fuzz_config(count: int) -> Counter[str]:
    rng = random.Random(0)
    config = plain(compose_here("tracking=none"))
    paths = places(config)
    return Counter(config_outcome(config, rng.choice(paths), rng.choice(HOSTILE)) for _ in range(count))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or replaced."""
    kind, place = rng.randrange(5), rng.randrange(len(data))
    if kind == 0:
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place:] * 2
    if kind == 3:
        return data[:place] + rng.randbytes(8) + data[place + 8 :]
    return json.dumps(rng.choice(HOSTILE), default=str).encode()


def manifest_outcome(artifact: Artifact, file: str, data: bytes, rng: random.Random) -> str:
    (artifact.path / file).write_bytes(changed := damaged(data, rng))
    try:
        artifact.manifest()
        same = changed == data or (file == MANIFEST and _same(changed, data))
        return "unchanged" if same else f"used: {file}: {changed[:80]!r}"
    except UserError as error:
        return "told" if len(str(error).splitlines()) == 1 else f"badly told: {error}"
    except Exception as error:
        return f"traceback: {file}: {changed[:80]!r}: {type(error).__name__}: {error}"
    finally:
        (artifact.path / file).write_bytes(data)


def _same(one: bytes, other: bytes) -> bool:
    """Whether two manifests certify the same files; the facts beside them are for people."""
    keys = ("schema", "stage", "key", "files")
    return all(json.loads(one)[key] == json.loads(other)[key] for key in keys)


def fuzz_manifest(count: int, folder: Path) -> Counter[str]:
    rng = random.Random(1)
    artifact = Store(folder).artifact("analysis", {"seed": 0})
    artifact.finish({"curvature.json": b'{"value": 1.5}', "x.bin": bytes(range(256))}, {"seconds": 1.0})
    kept = {path.name: path.read_bytes() for path in artifact.path.iterdir() if path.is_file()}
    names = [name for name in kept if not name.startswith(".")]
    chosen = (rng.choice(names) for _ in range(count))
    return Counter(manifest_outcome(artifact, name, kept[name], rng) for name in chosen)


def right(found: Counter[str], allowed: set[str]) -> str:
    """The figures in one line; fails with every outcome that is not allowed."""
    wrong = {outcome: number for outcome, number in found.items() if outcome not in allowed}
    assert not wrong, "\n".join(wrong)
    return f"tried {found.total()}: {', '.join(f'{number} {outcome}' for outcome, number in found.most_common())}"


@pytest.mark.torture
def test_hostile_configs(capsys: pytest.CaptureFixture[str]) -> None:
    line = right(fuzz_config(10_000), {"built", "told"})
    with capsys.disabled():
        print(f"\nconfig: {line}")


@pytest.mark.torture
def test_damaged_artifacts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = right(fuzz_manifest(10_000, tmp_path), {"told", "unchanged"})
    with capsys.disabled():
        print(f"\nmanifest: {line}")


def test_some_hostile_configs_and_artifacts(tmp_path: Path) -> None:
    """The same for the everyday suite."""
    right(fuzz_config(60), {"built", "told"})
    right(fuzz_manifest(200, tmp_path), {"told", "unchanged"})
