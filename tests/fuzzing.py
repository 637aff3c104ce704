"""Random mutations of a packed file, each with a checksum that fits, and what reading them does."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from packed_files import IMAGES, Everything, Parts, parts_of, rewritten

from hawq.export import load
from hawq.export.schema import checksum

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 8, 9, 32, 255, 2**31, 2**63, 2**200, -(2**40), 0.5, -0.0, 1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "", "stem", "a" * 10_000, "${oc.env:HOME}", "\0", "1", [], {}, [[]], [0], [-1]),
    *([1] * 50, [2**62] * 3, {"a": 1}, [None], ["stem"], ["stem", "stem"]),
)


def tried(original: Path, place: Path, count: int, seed: int) -> Counter[str]:
    """Reads `count` mutations of a file and counts what happens.

    Right is a refusal of one line with the file's name, or a network that is exactly what the file says: its outputs
    are finite and saving and loading it again gives them again. Wrong is any other exception, and each such mutation is
    printed with its number.
    """
    found: Counter[str] = Counter(tried=0, right=0, wrong=0, refused=0, read=0)
    parts = parts_of(original)
    for number in range(count):
        generator = random.Random(seed * 1_000_000 + number)
        place.write_bytes(mutated(parts, original.read_bytes(), generator))
        outcome = _outcome(place)
        found["tried"] += 1
        found["right" if outcome in ("refused", "read") else "wrong"] += 1
        found[outcome if outcome in ("refused", "read") else "failed"] += 1
        if outcome not in ("refused", "read"):
            print(f"mutation {number} of seed {seed}: {outcome}")
    return found


def mutated(parts: Parts, data: bytes, generator: random.Random) -> bytes:
    """One to three changes of header and tensors, or, for one file in ten, of raw bytes."""
    if generator.random() < 0.1:
        return _scrambled(data, generator)
    header, tensors = json.loads(json.dumps(parts[0])), {name: x.clone() for name, x in parts[1].items()}
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        if generator.random() < 0.75:
            _change_node(header, generator)
        else:
            _change_tensor(tensors, generator)
    try:
        return rewritten((header, tensors))
    except (ValueError, TypeError, RuntimeError):  # no such file can be made
        return data[: len(data) // 2]


def _scrambled(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed[: generator.randint(0, len(changed))] if generator.random() < 0.3 else changed)


def _change_node(header: Any, generator: random.Random) -> None:
    """Replaces, removes, repeats or moves one value anywhere in the header."""
    places = [place for place in _places(header) if place[1] != "checksum"]
    node, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0 and isinstance(node, dict):
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(generator.randint(0, len(node)), json.loads(json.dumps(node[key])))
    elif kind == 2 and isinstance(node, dict):
        node[generator.choice(("more", "", "name", "bits", f"{key} "))] = generator.choice(VALUES)
    elif kind == 3:
        other, place = generator.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif kind == 4 and isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
        node[key] += generator.choice((1, -1, 2, -2, 8, 100, -(10**6)))
    else:
        node[key] = generator.choice(VALUES)


def _places(node: Any) -> list[tuple[Any, Any]]:
    found = [(node, key) for key in _keys(node)]
    return found + [place for key in _keys(node) for place in _places(node[key])]


def _keys(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []


def _change_tensor(tensors: dict[str, torch.Tensor], generator: random.Random) -> None:
    if not tensors:
        return
    name = generator.choice(sorted(tensors))
    x = tensors[name]
    kind = generator.randrange(7)
    if kind == 0 or not len(x):
        del tensors[name]
    elif kind == 1:
        tensors[name] = x[: generator.randint(0, len(x))].clone()
    elif kind == 2:
        tensors[name] = torch.cat([x, x[: generator.randint(1, len(x))]])
    elif kind == 3:
        tensors[name] = x.to(generator.choice((torch.float64, torch.int64, torch.uint8, torch.float16)))
    elif kind == 4:
        tensors[generator.choice(("more", "wide", "codes", "exact"))] = x.clone()
    else:
        values = (math.nan, math.inf, -1.0, 0.0, 1e30, 1e-40) if x.is_floating_point() else (0, 1, 7, 100)
        x[generator.randrange(len(x))] = generator.choice(values)


def _outcome(path: Path) -> str:
    """ "refused", "read", or what went wrong."""
    try:
        network = load(path, Everything())
    except ValueError as error:
        text = str(error)
        one = len(text.splitlines()) == 1 and path.name in text and len(text) < 5000
        return "refused" if one else f"a refusal of another form: {text[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    with torch.no_grad(), contextlib.suppress(IndexError):  # a permutation may state any place
        network(IMAGES)
    header, tensors = parts_of(path)
    plan = network.quantization.plan  # type: ignore[union-attr]
    for entry in header["weights"]:
        bits = {
            b["name"]: plan.precisions[b["name"]].weight_bits for b in header["blocks"] if entry["name"] in b["layers"]
        }
        values = network.get_submodule(entry["name"]).weight
        if list(bits.values()) != [entry["bits"]] or not bool(values.isfinite().all()):
            return f"nonsense was read: {entry}"
    return "read" if header["checksum"] == checksum(header, tensors) else "a wrong checksum was taken"
