"""What enters and leaves a unit, stored for a set of images within a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hawq.attention import opened_attention
from hawq.modes import eval_mode
from hawq.reconstruction.units import Unit
from hawq.structures import main_output, map_tensors

_HALF_MOST = 30_000.0  # larger values come too close to the end of float16


@dataclass(frozen=True)
class Stored:
    """One tensor for N images: (N, rows, ...), in its own type or in float16."""

    values: Tensor
    dtype: torch.dtype  # its own

    def at(self, places: Tensor | slice) -> Tensor:
        """The rows of the images at `places`, (images · rows, ...), in their own type."""
        return self.values[places].to(self.dtype).flatten(0, 1)


@dataclass(frozen=True)
class _Column:
    """The place of a stored tensor in a call's arguments."""

    index: int


@dataclass(frozen=True)
class Inputs:
    """The arguments of a unit for N images; each distinct tensor with rows per image is stored once."""

    columns: list[Stored]
    template: Any  # (args, kwargs), with a `_Column` for each stored tensor

    def at(self, places: Tensor | slice) -> list[Tensor]:
        """The stored tensors for the images at `places`."""
        return [column.at(places) for column in self.columns]

    def call(self, module: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
        """The module's main output for these tensors in the places of the stored ones."""
        args, kwargs = _filled(self.template, tensors)
        return main_output(module(*args, **kwargs))


def _filled(value: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(value, _Column):
        return tensors[value.index]
    if isinstance(value, Mapping):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_filled(item, tensors) for item in value))
    return type(value)(_filled(item, tensors) for item in value) if isinstance(value, (tuple, list)) else value


class _Stop(Exception):
    """Ends a forward pass once all that is wanted of it was seen."""


class _Filling:
    """A store that batches are written into one after another."""

    def __init__(self, num_images: int, halve: bool) -> None:
        self._num_images, self._halve = num_images, halve
        self._values: Tensor | None = None

    def put(self, x: Tensor, first: int, size: int) -> None:
        """What belongs to `size` images from number `first` on, (size · rows, ...)."""
        if self._values is None:
            shape = (self._num_images, len(x) // size, *x.shape[1:])
            halve = self._halve and x.is_floating_point()
            self._values = _store(shape, x, torch.float16 if halve else x.dtype)
            self._dtype = x.dtype
        if self._values.dtype != x.dtype and float(x.abs().max()) > _HALF_MOST:
            self._values = self._values.to(x.dtype)
        self._values[first : first + size] = x.reshape(size, *self._values.shape[1:])

    def done(self) -> Stored:
        """The filled store."""
        assert self._values is not None
        return Stored(self._values, self._dtype)


def _store(shape: tuple[int, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor (N, rows, ...) in the memory format of x, (n · rows, ...): convolutions lose time where what
    they are given and the gradients of their outputs differ in it."""
    if x.dim() != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty(shape, dtype=dtype, device=x.device)
    images, rows, channels, height, width = shape
    return torch.empty((images, rows, height, width, channels), dtype=dtype, device=x.device).permute(0, 1, 4, 2, 3)


class Recorder:
    """Runs a network on images and stores what enters, or leaves, a unit of it.

    Args:
        network: run in eval mode; left unchanged.
        unit: whose module is called once per forward.
        images: batches of network inputs (N, ...).
        halve: store float16; widened where values are too large for it.
        run: runs the network on a batch, given its number and itself; from the start unless given.
    """

    def __init__(
        self,
        network: nn.Module,
        unit: Unit,
        images: Sequence[Tensor],
        halve: bool,
        run: Callable[[int, Tensor], Any] | None = None,
    ) -> None:
        self._network, self._unit, self._images, self._halve = network, unit, images, halve
        self._forward = run or (lambda _, batch: network(batch.clone()))  # a network may change its input in place
        self._module = network.get_submodule(unit.name)
        self._size = self._done = 0  # images in this batch, and before it

    def inputs(self) -> Inputs:
        """The module's arguments, before its own quantiser."""
        hook, finish = self._input_hook(last=True)
        self._run(hook)
        return finish()

    def outputs(self) -> Stored:
        """The module's main output."""
        hook, finish = self._output_hook()
        self._run(hook)
        return finish()

    def inputs_and_outputs(self) -> tuple[Inputs, Stored]:
        """Both, from the same forward passes."""
        (before, inputs), (after, outputs) = self._input_hook(last=False), self._output_hook()
        self._run(before, after)
        return inputs(), outputs()

    def _input_hook(self, *, last: bool) -> tuple[RemovableHandle, Callable[[], Inputs]]:
        """A hook that stores arguments and, where it is the `last` one, ends the forward; and what gives the result."""
        fillings: list[_Filling] = []
        template: Any = None

        def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal template
            batched, seen = iter(self._unit.batched), dict[int, _Column]()

            def place(x: Tensor) -> Any:
                if not next(batched):
                    return x
                if id(x) not in seen:
                    seen[id(x)] = _Column(len(seen))
                    if len(fillings) < len(seen):
                        fillings.append(self._filling())
                    fillings[len(seen) - 1].put(x, self._done, self._size)
                return seen[id(x)]

            template = map_tensors(place, (args, kwargs))
            if last:
                raise _Stop

        hook = self._module.register_forward_pre_hook(collect, prepend=True, with_kwargs=True)
        return hook, lambda: Inputs([filling.done() for filling in fillings], template)

    def _output_hook(self) -> tuple[RemovableHandle, Callable[[], Stored]]:
        """A hook that stores the main output and ends the forward; and what gives the result."""
        filling = self._filling()

        def collect(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            filling.put(main_output(output), self._done, self._size)
            raise _Stop

        return self._module.register_forward_hook(collect), filling.done

    def _filling(self) -> _Filling:
        return _Filling(sum(map(len, self._images)), self._halve)

    @torch.no_grad()
    def _run(self, *hooks: RemovableHandle) -> None:
        """One forward per batch, each up to the module."""
        self._done = 0
        try:
            with eval_mode(self._network), opened_attention(self._network):
                for place, batch in enumerate(self._images):
                    self._size = len(batch)
                    with suppress(_Stop):
                        self._forward(place, batch)
                    self._done += self._size
        finally:
            for hook in hooks:
                hook.remove()


def plan_store(num_images: int, elements: int, limit_gib: float) -> tuple[int, bool]:
    """How many images are stored, and whether in float16: only where float32 does not fit, and then fewer images."""
    room = limit_gib * 2**30
    if num_images * elements * 4 <= room:
        return num_images, False
    return max(min(num_images, int(room / (elements * 2))), 2), True
