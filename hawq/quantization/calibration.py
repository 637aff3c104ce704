"""What enters each layer: a random sample of its values, and the extremes of all of them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.errors import UserError
from hawq.layers import layer_inputs
from hawq.modes import eval_mode
from hawq.progress import SILENT, Task, counted
from hawq.structures import described

_LOG = logging.getLogger(__name__)
CALIBRATION_VALUES = 200_000  # activations of one layer that its range is chosen from
MOST_BATCHES = 64  # that are read of a loader or a generator


def input_batches(calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor, device: torch.device) -> list[Tensor]:
    """The inputs (N, ...) of calibration batches, on `device`.

    Args:
        calibration: batches of inputs, or of (inputs, targets): a list, of which all are taken, or any other iterable,
            a DataLoader say, of which the first 64 are; a tensor is one batch.
        device: the network's.

    Raises:
        UserError: there is none, or one of another form or without samples.
    """
    if isinstance(calibration, Tensor):
        given: list[Any] = [calibration]
    elif isinstance(calibration, Sequence):
        given = list(calibration)
    else:
        given = list(islice(calibration, MOST_BATCHES))
        if len(given) == MOST_BATCHES:
            _LOG.info("calibration reads the first %d batches; give a list to read more", MOST_BATCHES)
    if not given:
        raise UserError("calibration is empty: give at least one batch of inputs, activation ranges come from it")
    return [_inputs_of(batch).to(device) for batch in given]


def _inputs_of(batch: Any) -> Tensor:
    """The inputs of one batch. Raises UserError, saying what it is, for any other form."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    inputs = batch[0] if pair else batch
    if isinstance(inputs, Tensor) and inputs.dim() and len(inputs):
        return inputs
    if isinstance(inputs, Tensor):
        raise UserError(f"a calibration batch has the shape {tuple(inputs.shape)}: give at least one sample in each")
    raise UserError(
        f"a calibration batch is {described(batch)}: give tensors of inputs (N, ...), or pairs of (inputs, targets)"
    )


class InputSample:
    """Values that entered a layer: all of a small batch, and of a large one as many as were asked for, drawn at random.

    Every value of a batch is drawn with the same probability, whatever the layout in memory and the number of channels.

    Args:
        per_batch: values kept of one batch.
        seed: of the draw.
    """

    def __init__(self, per_batch: int, seed: int) -> None:
        self._per_batch, self._generator = per_batch, torch.Generator().manual_seed(seed)
        self._parts: list[Tensor] = []
        self._extremes: list[Tensor] = []  # (least, largest) of each batch that was not kept whole

    def add(self, x: Tensor) -> None:
        """Takes up what entered in one call, a tensor of any shape and layout, which is not copied."""
        x = x.detach()
        if x.numel() <= self._per_batch:
            self._parts.append(x.reshape(-1).clone())
            return
        flat = _in_memory_order(x)
        if flat is not None:
            self._parts.append(flat[self._places(flat)])
            self._extremes.append(torch.stack(flat.aminmax()))
        else:  # parts of a larger tensor
            self._parts.append(x[tuple(self._places(x, axis) for axis in range(x.dim()))])
            self._extremes.append(torch.stack([x.amin(), x.amax()]))

    def _places(self, x: Tensor, axis: int = 0) -> Tensor:
        """Random places along an axis, each independent of the others."""
        return torch.randint(x.shape[axis], (self._per_batch,), generator=self._generator).to(x.device)

    @property
    def is_empty(self) -> bool:
        """Whether nothing entered."""
        return not any(part.numel() for part in self._parts)

    def values(self) -> Tensor:
        """The sample, flat."""
        return torch.cat(self._parts)

    def values_and_extremes(self) -> Tensor:
        """The sample with the least and the largest of all values that entered, flat: what a range is chosen from."""
        if not self._extremes:
            return self.values()
        all_extremes = torch.cat(self._extremes)
        return torch.cat([self.values(), torch.stack(all_extremes.aminmax())])


def _in_memory_order(x: Tensor) -> Tensor | None:
    """All values of `x` as they lie in memory, a view; None where they do not fill it."""
    ordered = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return ordered.view(-1) if ordered.is_contiguous() else None


@torch.no_grad()
def observe_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], calibration: Sequence[Tensor], task: Task = SILENT
) -> dict[str, InputSample]:
    """A sample of what enters each of the named layers of `model`, in eval mode.

    Args:
        model: run on all of `calibration`.
        layers: qualified name → layer of `model`.
        calibration: batches of the network's inputs (N, ...).
        task: advanced by every sample.

    Returns:
        The samples by name, without layers that were never called or received nothing.

    Raises:
        UserError: a value is not finite, so that no range can hold it; names the layer.
    """
    share = CALIBRATION_VALUES // max(len(calibration), 1)
    samples = {name: InputSample(share, zlib.crc32(name.encode())) for name in layers}
    hooks = [
        layer.register_forward_pre_hook(_collector(samples[name]), prepend=True, with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with eval_mode(model), opened_attention(model):
            for inputs in counted(calibration, task):
                model(inputs.clone())  # a network may change its input in place
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: sample for name, sample in samples.items() if not sample.is_empty}
    for name, sample in found.items():
        if not sample.values_and_extremes().isfinite().all():
            raise UserError(
                f"what enters {name} is not finite on the calibration inputs: give inputs without NaN and inf"
            )
    return found


def _collector(sample: InputSample) -> Callable[..., None]:
    def collect(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for x in layer_inputs(layer, args, kwargs):
            sample.add(x)

    return collect
