"""Which product a bound on an end of the spectrum needs next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hawq.curvature.probing import End
from hawq.curvature.solver import State

SUBSPACE, PLAIN, WHOLE, NOTHING = "subspace", "plain", "whole", "nothing"
_PATIENCE = 6  # products more of a probe that has rows; a fresh one without them needs six to nine in all
_SEEN = 3  # products after which the forecast of a probe is worth something

Choice = str | int


def next_product(
    end: End, limit: float, subspace: State, probes: Sequence[State], costs: Mapping[str, float]
) -> Choice:
    """What to ask for: the place of a probe; `SUBSPACE`, to grow it; `PLAIN`, a probe without rows instead; `WHOLE`, a
    probe of the whole in place of those of its parts; or `NOTHING`, where no product would lower the error.

    Args:
        end: whose error is still above `limit`.
        limit: on the error.
        subspace, probes: what is known so far.
        costs: part of the samples → cost of one product.
    """
    grows = subspace["following"] is not None
    hopeless = end.hopes() > limit
    if hopeless and end.hopes(coupled=False) <= limit and grows:
        return SUBSPACE
    alone = len(probes) == 1
    if alone and probes[0]["rows"] is not None and (hopeless or _is_slow(end, limit, probes[0])):
        return PLAIN
    if hopeless and not alone:  # the bounds of the parts do not add up to a good one
        return WHOLE
    worth = {
        place: end.gain(place) / costs[probe["part"]]
        for place, probe in enumerate(probes)
        if not probe["krylov"]["invariant"]
    }
    if worth:
        return max(worth, key=lambda place: worth[place])
    return SUBSPACE if grows else NOTHING


def _is_slow(end: End, limit: float, probe: State) -> bool:
    """Whether a probe of what rows leave is about to need more products than one without rows."""
    return len(probe["krylov"]["alpha"]) >= _SEEN and end.forecast(0, _PATIENCE) > limit
