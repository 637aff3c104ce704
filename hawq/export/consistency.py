"""Whether a packed file's header and tensors agree, before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from hawq.costs import plan_cost
from hawq.export.schema import EXACT_TYPES, Header, InputEntry, TensorEntry, WeightEntry
from hawq.layers import quantizable_layers, weight_identity, weight_of
from hawq.quantization import check_plan_fits
from hawq.records import BIT_WIDTHS, FLOAT_BITS, IMAGE_BITS, Block, Cost, Precision

_MOST_AXES, _LONGEST_AXIS, _LONGEST_NAME = 16, 2**40, 500


def check_header(header: Header) -> None:
    """Raises ValueError, in one sentence, for a header whose parts contradict each other or make no network."""
    for kind, names in {
        "block": [block.name for block in header.blocks],
        "layer of the blocks": [layer for block in header.blocks for layer in block.layers],
        "weight": [entry.name for entry in header.weights],
        "input": [entry.name for entry in header.inputs],
        "residual": [entry.name for entry in header.residuals],
        "step": [step for entry in header.residuals for step in entry.after],
        "block of the plan": list(header.plan.precisions),
        "tensor": [entry.name for entry in (*header.floats, *header.tensors)],
    }.items():
        if odd := [name for name in names if len(name) > _LONGEST_NAME or not name.isprintable()]:
            raise ValueError(f"{kind} {odd[0][:40]!r} has a name that is too long or cannot be printed")
        if twice := _repeated(names):
            raise ValueError(f"{kind} {twice[0]!r} is listed twice")
    for block in header.blocks:
        _check_block(block)
    check_plan_fits(header.blocks, header.plan)
    for name, precision in header.plan.precisions.items():
        _check_precision(name, precision)
    for entry in header.weights:
        _check_weight(entry)
    for tensor in (*header.floats, *header.tensors):
        _check_shape(tensor.name, tensor.shape)
    _check_types(header.floats, header.tensors)
    _check_bits(header)
    _check_cost(header)


def check_tensors(header: Header, sizes: Mapping[str, int]) -> None:
    """Raises ValueError unless the file's tensors, pool → number of elements, are as long as the header says."""
    for pool in sorted({*header.sizes(), *sizes}):
        wanted, found = header.sizes().get(pool, 0), sizes.get(pool, 0)
        if wanted != found:
            raise ValueError(f"its tensor {pool!r} has {found} elements and the header lists {wanted}")


def check_weights(header: Header, model: nn.Module) -> None:
    """Raises ValueError where a listed layer is none of `model`, or a block states another number of weights."""
    layers = quantizable_layers(model)
    listed = [layer for block in header.blocks for layer in block.layers]
    unknown = [name for name in listed if name not in layers]
    if unknown:
        raise ValueError(f"{type(model).__name__} has no layer {unknown[0]!r} that can be quantised")
    for block in header.blocks:
        weights = {weight_identity(layers[name]): weight_of(layers[name]).numel() for name in block.layers}
        if block.num_weights != sum(weights.values()):
            raise ValueError(
                f"block {block.name!r} states {block.num_weights} weights and has {sum(weights.values())} in "
                f"{type(model).__name__}"
            )


def check_grid(name: str, bits: int, scale: Tensor, low: Tensor) -> None:
    """Raises ValueError unless all scales are positive numbers, and all lowest codes on a grid of `bits` bits."""
    ends = torch.finfo(scale.dtype)
    if not bool(((scale >= ends.tiny) & (scale <= ends.max / 2**9)).all()):
        raise ValueError(f"{name} has a scale that is no normal positive number")
    doubled = 2 * low
    if not bool(((doubled == doubled.round()) & (low <= 0) & (low >= 1 - 2**bits)).all()):
        raise ValueError(f"{name} has a lowest code outside {1 - 2**bits} … 0")


def check_large(name: str, places: Tensor, values: Tensor, count: int) -> None:
    """Raises ValueError unless the places of large values rise within 0 … `count` − 1 and all values are finite."""
    inside = not places.numel() or (int(places[0]) >= 0 and int(places[-1]) < count)
    if not inside or not bool((places[1:] > places[:-1]).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"{name} has large values outside the weight, twice at one place, or not finite")


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice = []
    for name in names:
        if name in seen:
            twice.append(name)
        seen.add(name)
    return twice


def _check_block(block: Block) -> None:
    counts = (block.macs, block.num_activations)
    if not block.layers or block.num_weights < 1 or any(count is not None and count < 0 for count in counts):
        raise ValueError(f"block {block.name!r} has no layers or no weights, or counts below zero")
    foreign = sorted(set(block.image_layers) - set(block.layers))
    if foreign:
        raise ValueError(f"block {block.name!r} does not hold its image layer {foreign[0]!r}")


def _check_precision(name: str, precision: Precision) -> None:
    for bits in (precision.weight_bits, precision.activation_bits):
        if bits not in (*BIT_WIDTHS, FLOAT_BITS):
            raise ValueError(f"the plan gives block {name!r} {bits} bits: 1 to 8 or 32 are possible")


def _check_weight(entry: WeightEntry) -> None:
    _check_shape(entry.name, entry.shape)
    if entry.axis not in (0, 1) or len(entry.shape) <= entry.axis or not entry.count:
        raise ValueError(f"weight {entry.name!r} has no axis {entry.axis}, or no values")
    if entry.scales not in (1, entry.shape[entry.axis]) or entry.lows not in (1, entry.scales):
        raise ValueError(
            f"weight {entry.name!r} has {entry.scales} scales and {entry.lows} lowest codes: one per channel"
        )
    if not 0 <= (entry.large or 0) <= entry.count:
        raise ValueError(f"weight {entry.name!r} has {entry.large} large values of {entry.count}")


def _check_shape(name: str, shape: Sequence[int]) -> None:
    if len(shape) > _MOST_AXES or not all(0 <= length <= _LONGEST_AXIS for length in shape):
        raise ValueError(f"{name!r} has an impossible shape of {len(shape)} axes")


def _check_types(floats: Sequence[TensorEntry], tensors: Sequence[TensorEntry]) -> None:
    wrong = [entry for entry in floats if entry.dtype != "float32"]
    wrong += [entry for entry in tensors if entry.dtype not in EXACT_TYPES]
    if wrong:
        raise ValueError(f"tensor {wrong[0].name!r} has the unknown type {wrong[0].dtype[:40]!r}")


def _check_bits(header: Header) -> None:
    """Weights and inputs are those that the plan quantises, at its bits."""
    planned = {layer: header.plan.precisions[block.name] for block in header.blocks for layer in block.layers}
    images = {layer for block in header.blocks for layer in block.image_layers}
    wanted = {layer: bits.weight_bits for layer, bits in planned.items() if bits.weight_bits < FLOAT_BITS}
    found = {entry.name: entry.bits for entry in header.weights}
    if different := sorted(wanted.items() ^ found.items()):
        raise ValueError(f"weight {different[0][0]!r} does not have the bits that the plan gives it")
    for entry in header.inputs:
        if entry.name not in planned or entry.bits != _input_bits(entry, planned[entry.name], images):
            raise ValueError(f"the input of {entry.name!r} does not have the bits that the plan gives it")


def _input_bits(entry: InputEntry, planned: Precision, images: set[str]) -> int | None:
    if planned.activation_bits == FLOAT_BITS:
        return None
    return IMAGE_BITS if entry.name in images else planned.activation_bits


def _check_cost(header: Header) -> None:
    """The figures of the plan are those of its bits."""
    stated, true = header.plan.cost, plan_cost(header.blocks, header.plan.precisions)
    for field in fields(Cost):
        given, expected = getattr(stated, field.name), getattr(true, field.name)
        if field.name != "packed_bytes" and not _agree(given, expected):
            raise ValueError(f"its plan states {field.name}={given}, and its bits give {expected}")


def _agree(given: float | None, expected: float | None) -> bool:
    """Whether two figures are the same, or one of them is unknown (blocks that no forward was traced for)."""
    return given is None or expected is None or math.isclose(given, expected, rel_tol=1e-6)


def check_exact(name: str, tensor: Tensor) -> None:
    """Raises ValueError for a byte that is no truth value in a boolean tensor."""
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError(f"tensor {name!r} holds values that are neither true nor false")
