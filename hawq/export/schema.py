"""The header of a packed file: what stands in which tensor (docs/formats.md)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, get_args, get_origin

import cattrs
import torch
from torch import Tensor

from hawq.records import BitPlan, Block

PACKED_SCHEMA = "hawq.packed/2"
EXACT_SCHEMA = "hawq.packed/3"  # of files that hold more than the former can
POOLS = {  # the tensors of a file, each of one axis
    "codes": torch.uint8,
    "scales": torch.float32,
    "lows": torch.float16,
    "floats": torch.float32,
    "large_places": torch.int32,
    "large_values": torch.float32,
    "wide": torch.float64,  # scales and large values of networks in float64
    "exact": torch.uint8,  # bytes of all other tensors
}
EXACT_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}


@dataclass(frozen=True)
class WeightEntry:
    """A quantised weight: the layer's name, its bits, shape, and how many scales, lows and large values it has.

    `axis` is the one along which the scales stand, `wide` says that they are float64; `large` is None where no value
    is kept in full precision.
    """

    name: str
    bits: int
    shape: tuple[int, ...]
    large: int | None
    scales: int
    lows: int
    axis: int = 0
    wide: bool = False

    @property
    def count(self) -> int:
        """Codes of the weight."""
        return prod(self.shape)


@dataclass(frozen=True)
class InputEntry:
    """The quantiser of what enters a layer: its name, bits, and whether values above the grid pass unchanged."""

    name: str
    bits: int
    keeps_large: bool
    wide: bool = False


@dataclass(frozen=True)
class ResidualEntry:
    """A quantiser of what enters additions, concatenations and poolings, and the steps that it stands after."""

    name: str
    bits: int
    keeps_large: bool
    after: tuple[str, ...]
    wide: bool = False


@dataclass(frozen=True)
class TensorEntry:
    """Any other tensor: name, shape, and its type where that is not float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * (4 if self.dtype == "float32" else EXACT_TYPES[self.dtype].itemsize)


@dataclass(frozen=True)
class Header:
    """What a packed file says of itself; its lists are in the order in which the tensors hold the values."""

    schema: str
    blocks: tuple[Block, ...]
    plan: BitPlan
    weights: tuple[WeightEntry, ...]
    inputs: tuple[InputEntry, ...]
    floats: tuple[TensorEntry, ...]
    about: dict[str, Any]
    checksum: str
    tensors: tuple[TensorEntry, ...] = ()
    residuals: tuple[ResidualEntry, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Pool → number of its elements, for pools that are not empty."""
        narrow = [entry for entry in self.weights if not entry.wide]
        wide = [entry for entry in self.weights if entry.wide]
        large = sum(entry.large or 0 for entry in self.weights)
        grids: list[InputEntry | ResidualEntry] = [*self.inputs, *self.residuals]
        found = {
            "codes": sum(-(-entry.count * entry.bits // 8) for entry in self.weights),
            "scales": sum(entry.scales for entry in narrow) + sum(not entry.wide for entry in grids),
            "lows": sum(entry.lows for entry in self.weights) + len(grids),
            "floats": sum(prod(entry.shape) for entry in self.floats),
            "large_places": large,
            "large_values": sum(entry.large or 0 for entry in narrow),
            "wide": sum(entry.scales + (entry.large or 0) for entry in wide) + sum(e.wide for e in grids),
            "exact": sum(entry.num_bytes for entry in self.tensors),
        }
        return {pool: size for pool, size in found.items() if size}


def parse_header(data: Any) -> Header:
    """The header that JSON `data` holds. Raises ValueError naming every wrong field."""
    try:
        return _converter().structure(data, Header)
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, path="header")[:5])
        raise ValueError(problems) from error


def checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header without its checksum (JSON, sorted keys) and the bytes of all tensors, by name."""
    covered = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def _converter() -> cattrs.Converter:
    """Takes JSON's own types alone: no text for a number, no fraction for a whole one, no mapping for a list."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, lambda value, _: _typed(value, int))
    converter.register_structure_hook(str, lambda value, _: _typed(value, str))
    converter.register_structure_hook(bool, lambda value, _: _typed(value, bool))
    converter.register_structure_hook(float, lambda value, _: _finite(value))
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is tuple, lambda kind: _list_hook(converter, get_args(kind)[0])
    )
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is dict, lambda kind: _mapping_hook(converter, get_args(kind)[1])
    )
    return converter


def _list_hook(converter: cattrs.Converter, item: Any) -> Callable[[Any, Any], Any]:
    return lambda value, _: tuple(converter.structure(part, item) for part in _typed(value, list))


def _mapping_hook(converter: cattrs.Converter, item: Any) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> dict[str, Any]:
        return {
            key: part if item is Any else converter.structure(part, item) for key, part in _typed(value, dict).items()
        }

    return structure


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]!r} is not of type {kind.__name__}")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return float(value)
