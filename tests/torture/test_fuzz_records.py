"""Hostile sensitivity, plan and latency files: one sentence that names the file, or entries that are what they say."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sensitivities import full_sensitivity

from hawq.allocation import HawqV3, IntegerProgram, Manual, Monotone, allocate
from hawq.allocation.latency import read_latency
from hawq.records import BIT_WIDTHS, PLAN_SCHEMA, SENSITIVITY_SCHEMA, BitPlan, Sensitivity, read_record, to_dict

HOSTILE = (
    *(None, True, False, "", " ", "x", "4", "-1", "nan", "1e400", "\x00", "a\nb", "é" * 2000, "b0", "b1"),
    *(0, -1, 1, 2, 9, 33, 0.5, -0.5, 4.0, 1e308, -1e308, 1e-308, 10**30, 10**400, -(10**400)),
    *(float("nan"), float("inf"), float("-inf"), [], [0], [[]], {}, {"a": 1}, {"4": 1.0}, {"2": {"2": 1}}),
)
KEYS = ("", "9", "04", "4.0", "-1", "1e1", "4/8", "4/8/2", "8/9", "schema", "b0", "colour", "\x00")
TABLE = {
    "schema": "hawq.latency/1",
    "device": "T4",
    "milliseconds": {f"b{i}": {**{str(b): 0.1 * b for b in range(2, 9)}, "8/4": 0.5} for i in range(4)},
}
SENSITIVITY = full_sensitivity(0, 4)
ALLOCATORS = (
    IntegerProgram(5, "average_bits"),
    IntegerProgram(5, "average_bits", activations="mixed"),
    Monotone(5, "average_bits", score="auto"),
    HawqV3(0.5, "bytes", score="auto"),
)


def originals() -> dict[str, dict[str, Any]]:
    """File name → content that is right."""
    plan = allocate(SENSITIVITY, ALLOCATORS[0])
    return {
        "sensitivity.json": {"schema": SENSITIVITY_SCHEMA, **to_dict(SENSITIVITY)},
        "plan.json": {"schema": PLAN_SCHEMA, **to_dict(plan)},
        "latency.json": TABLE,
    }


def containers(node: Any) -> list[Any]:
    """The mappings and lists in a value, itself among them."""
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node] if isinstance(node, (dict, list)) else []
    return own + [found for value in inside for found in containers(value)]


def mutated(content: dict[str, Any], rng: random.Random) -> str:
    """The text of a file with a few entries changed, removed, added, renamed or doubled, or with damaged bytes."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        node = rng.choice([one for one in containers(content) if one] or [content])
        if not node:
            continue
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        kind = rng.randrange(6)
        if kind <= 2:
            node[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del node[key]
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif kind == 4:
            node[rng.choice(KEYS)] = copy.deepcopy(node[key])
        else:
            node[rng.choice(KEYS)] = node.pop(key)
    text = json.dumps(content)
    kind, place = rng.randrange(12), rng.randrange(len(text))
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + rng.choice('{}[]",:0-9eE.') + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[max(0, place - 40) : place] + text[place:]
    if kind == 3:
        return text.replace('"2": ', '"3": ', 1)
    return text


def table_as_csv(rng: random.Random) -> str:
    """A table with a damaged, doubled, missing or added cell or line."""
    lines = [["device", "block", "bits", "ms"]]
    lines += [["T4", name, bits, str(ms)] for name, row in TABLE["milliseconds"].items() for bits, ms in row.items()]
    for _ in range(rng.randint(1, 2)):
        line = rng.choice(lines)
        kind = rng.randrange(5)
        if kind <= 1:
            line[rng.randrange(len(line))] = str(rng.choice(HOSTILE + KEYS))
        elif kind == 2:
            line.append("1")
        elif kind == 3:
            line.pop()
            line += [] if line else ["x"]
        else:
            lines.insert(rng.randrange(len(lines)), list(line))
    return "\n".join(",".join(line) for line in lines)


def is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 10**16


def is_amount(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and 0 <= value < 1e130


def sound(sensitivity: Sensitivity) -> bool:
    """Whether every entry is what its name says, by this test's own reading of docs/formats.md."""
    names = [row.block.name for row in sensitivity.rows]
    good = len(set(names)) == len(names) and all(isinstance(name, str) and name.strip() for name in names)
    for row in sensitivity.rows:
        block = row.block
        good &= is_count(block.num_weights, 1) and all(
            value is None or is_count(value) for value in (block.macs, block.num_activations)
        )
        good &= all(isinstance(name, str) and name for name in (*block.layers, *block.image_layers))
        good &= block.fixed_bits in (None, *BIT_WIDTHS, 32)
        for errors in (row.weight_errors, row.activation_errors or {}):
            good &= all(bits in BIT_WIDTHS and is_amount(error) for bits, error in errors.items())
        for estimate in filter(None, (row.eigenvalue, row.trace, row.proxy, row.smallest, row.activation_trace)):
            good &= math.isfinite(estimate.value) and is_amount(estimate.error) and is_count(estimate.products)
            good &= isinstance(estimate.converged, bool)
    for table in sensitivity.scores:
        rows = [row for kind in ("weights", "activations") for row in table.of(kind).values()]
        predictions = [one for row in (*rows, table.ranks) for one in row.values()]
        good &= all(math.isfinite(one.value) and is_amount(one.error) for one in predictions)
        good &= {*table.weights, *table.activations, *table.ranks} <= set(names)
    return good


def use_sensitivity(path: Path, rng: random.Random) -> bool:
    """Reads the file and allocates; whether entries and plan are sound."""
    sensitivity = read_record(path, SENSITIVITY_SCHEMA, Sensitivity)
    if not sound(sensitivity):
        return False
    if not sensitivity.rows:
        return True  # told by the stage that reads it
    plan = allocate(sensitivity, rng.choice(ALLOCATORS))
    reached = plan.limits[0]
    good = reached.slack >= -1e-6 * max(abs(reached.target), 1) and plan.precisions.keys() == {
        block.name for block in sensitivity.blocks
    }
    return good and plan.objective is not None and math.isfinite(plan.objective)


def use_plan(path: Path, rng: random.Random) -> bool:
    """Takes the bits of the file; whether they are those of the four blocks."""
    plan: BitPlan = Manual(plan=str(path)).allocate(SENSITIVITY)
    bits = plan.precisions.values()
    return list(plan.precisions) == ["b0", "b1", "b2", "b3"] and all(
        is_count(one.weight_bits, 1) and one.weight_bits in BIT_WIDTHS and one.activation_bits in (*BIT_WIDTHS, 32)
        for one in bits
    )


def use_latency(path: Path, rng: random.Random) -> bool:
    """Reads the table and allocates under it; whether its times are sound and the limit holds."""
    table = read_latency(path)
    good = isinstance(table.device, str) and bool(table.device.strip())
    for row in table.milliseconds.values():
        good &= all(is_amount(ms) and bits.replace("/", "").isdigit() for bits, ms in row.items())
    allocator = IntegerProgram(2.0, "latency_ms", latency=str(path), activations=8)
    return good and allocate(SENSITIVITY, allocator).limits[0].reached <= 2.0 * (1 + 1e-9)


USES: dict[str, Callable[[Path, random.Random], bool]] = {
    "sensitivity.json": use_sensitivity,
    "plan.json": use_plan,
    "latency.json": use_latency,
    "latency.csv": use_latency,
}


def outcome(path: Path, text: str, rng: random.Random) -> str:
    """ "used", "told", or what went wrong with one file."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        return "used" if USES[path.name](path, rng) else f"unsound: {text}"
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        return "told" if len(said.splitlines()) == 1 and len(said) < 1_200 else f"badly told: {said[:400]}\n{text}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}\n{text}"


def fuzz(count: int, folder: Path, seed: int = 0) -> Counter[str]:
    rng, contents = random.Random(seed), originals()
    found: Counter[str] = Counter()
    for _ in range(count):
        name = rng.choice(list(USES))
        text = table_as_csv(rng) if name == "latency.csv" else mutated(contents[name], rng)
        found[outcome(folder / name, text, rng)] += 1
    return found


def right(found: Counter[str]) -> str:
    """The figures in one line; fails with every outcome that is wrong."""
    wrong = {one: number for one, number in found.items() if one not in ("used", "told")}
    assert not wrong, "\n".join(wrong)
    told, used = found["told"], found["used"]
    return f"tried {found.total()}: right {told + used} ({told} told, {used} used), wrong 0"


@pytest.mark.torture
def test_hostile_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = right(fuzz(10_000, tmp_path))
    with capsys.disabled():
        print(f"\nsensitivity, plan and latency files: {line}")


def test_some_hostile_files(tmp_path: Path) -> None:
    """The same for the everyday suite; each file is taken as it was before it was damaged."""
    right(fuzz(100, tmp_path, seed=1))
    rng = random.Random(0)
    for name, content in originals().items():
        assert outcome(tmp_path / name, json.dumps(content), rng) == "used"
