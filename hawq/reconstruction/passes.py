"""Forward passes up to one unit after another: what comes before a unit is remembered, not computed again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hawq.attention import opened_attention
from hawq.modes import eval_mode
from hawq.reconstruction.units import Unit
from hawq.replay import Memory, prefixes

_LOG = logging.getLogger(__name__)
_FEW = 2  # images that show what a unit needs of what comes before it


class Passes:
    """Passes of a network over the same batches, for its units in the order in which the forward reaches them.

    A unit's weights may change once it was left; whatever precedes the current one must not.

    Args:
        network: run in eval mode.
        units: of it, in the order of the forward.
        images: batches of network inputs (N, ...).
        limit_gib: most memory for what precedes a unit; one that needs more is run from the start.
    """

    def __init__(self, network: nn.Module, units: Sequence[Unit], images: Sequence[Tensor], limit_gib: float) -> None:
        self._network, self._images, self._limit = network, images, limit_gib * 2**30
        with eval_mode(network), opened_attention(network):
            self._prefixes = prefixes(network, {unit.name: [unit.name] for unit in units}, images[0][:_FEW])
        self._at: str | None = None
        self._known: list[Memory] = []

    @torch.no_grad()
    def go_to(self, unit: Unit) -> None:
        """Remembers what precedes `unit`, beginning at the unit before where that was remembered."""
        prefix, former, known = self._prefixes[unit.name], self._prefixes.get(self._at or ""), self._known
        self._at, self._known = None, []
        found: list[Memory] = []
        with eval_mode(self._network), opened_attention(self._network):
            for place, inputs in enumerate(self._images):
                found.append(prefix.remember(inputs, (former, known[place]) if former is not None and known else None))
                if place == 0 and prefix.bytes_of(found[0]) * len(self._images) > self._limit:
                    _LOG.debug("what precedes %s takes too much memory to be kept", unit.name)
                    return
        self._at, self._known = unit.name, found

    def run(self, place: int, inputs: Tensor) -> Any:
        """The network's outputs for batch number `place`, which is `inputs`; it may be ended by a hook."""
        if self._at is None:
            return self._network(inputs.clone())  # a network may change its input in place
        return self._prefixes[self._at].run(inputs, self._known[place])
