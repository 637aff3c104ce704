"""Random plans of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hawq.allocation.allocator import CANDIDATES
from hawq.allocation.problem import make_groups
from hawq.errors import UserError
from hawq.records import FLOAT_BITS, Block, PlanOutcome, Precision
from hawq.validation.settings import Validation

Plan = dict[str, Precision]

TOLERANCE = 0.01  # by which the sizes of plans may differ
_FEWEST = 3  # plans, below which no rank correlation means anything
_MOVES, _TRIES = 500, 50  # of one plan; starts for each plan that is asked for


def random_plans(
    blocks: Sequence[Block],
    w_comp: float,
    count: int,
    seed: int,
    *,
    candidates: Sequence[int],
    activations: int = FLOAT_BITS,
    tied: Sequence[Sequence[str]] = (),
) -> list[Plan]:
    """`count` different plans, each with W-Comp within 1 % of `w_comp`; fewer where there are not so many.

    Each begins with independent uniform bits for every block; then single blocks, drawn at random, move by one
    candidate towards the size.

    Args:
        blocks: of the network; fixed bits and ties are kept.
        w_comp: 32 Σ n / Σ b n.
        count: of plans.
        seed: of the draws.
        candidates: bit-widths of weights.
        activations: bits of all activations.
        tied: further lists of blocks that share their bits.

    Raises:
        UserError: fewer than three such plans, with the W-Comp that these bits can reach.
    """
    options = {
        block.name: [Precision(bits, activations) for bits in ([block.fixed_bits] if block.fixed_bits else candidates)]
        for block in blocks
    }
    groups = make_groups(blocks, options, tied)
    sizes = np.array([sum(block.num_weights for block in group.blocks) for group in groups], dtype=float)
    bits = [np.array([option.weight_bits for option in group.options], dtype=float) for group in groups]
    target = FLOAT_BITS * sizes.sum() / w_comp
    rng, found = np.random.default_rng(seed), dict[tuple[int, ...], Plan]()
    for _ in range(_TRIES * count):
        chosen = _walk(rng, sizes, bits, target)
        if chosen is not None:
            picked = [group.options[i] for group, i in zip(groups, chosen, strict=True)]
            pairs = [(b.name, one) for group, one in zip(groups, picked, strict=True) for b in group.blocks]
            found.setdefault(tuple(chosen), dict(pairs))
        if len(found) == count:
            break
    if len(found) < min(count, _FEWEST):
        largest, smallest = (sum(n * end(own) for n, own in zip(sizes, bits, strict=True)) for end in (max, min))
        least, most = (FLOAT_BITS * sizes.sum() / total for total in (largest, smallest))
        raise UserError(
            f"target={w_comp:.4g} has {len(found)} plans of that size within 1 % and {_FEWEST} are needed: "
            f"give a W-Comp well within {least:.4g} to {most:.4g}, or plans=0"
        )
    order = {block.name: place for place, block in enumerate(blocks)}
    return [dict(sorted(plan.items(), key=lambda pair: order[pair[0]])) for plan in found.values()]


def wanted_plans(wanted: Validation, bits: Any, blocks: Sequence[Block], w_comp: float, seed: int) -> list[Plan]:
    """The random plans that a validation asks for, with the candidates and ties of an allocator where it has any.

    Raises UserError as `random_plans` does.
    """
    return random_plans(
        blocks,
        w_comp,
        wanted.plans,
        seed,
        candidates=getattr(bits, "candidates", CANDIDATES),
        activations=wanted.activations,
        tied=getattr(bits, "tied", ()),
    )


def _walk(rng: np.random.Generator, sizes: np.ndarray, bits: list[np.ndarray], target: float) -> list[int] | None:
    """The option of each group, from random ones towards the target size; None where that leads nowhere."""
    chosen = [int(rng.integers(len(own))) for own in bits]
    for _ in range(_MOVES):
        difference = target - sum(size * own[i] for size, own, i in zip(sizes, bits, chosen, strict=True))
        if abs(difference) <= TOLERANCE * target:
            return chosen
        step = 1 if difference > 0 else -1
        moves = [g for g, own in enumerate(bits) if 0 <= chosen[g] + step < len(own)]
        changes = {g: abs(sizes[g] * (bits[g][chosen[g] + step] - bits[g][chosen[g]])) for g in moves}
        closer = [g for g in moves if changes[g] < 2 * abs(difference)]
        if not closer:
            return None
        moved = closer[int(rng.integers(len(closer)))]
        chosen[moved] += step
    return None


def plan_of(outcome: PlanOutcome) -> Plan:
    """The plan that an outcome is of."""
    pairs: dict[str, Any] = {name: [int(part) for part in label.split("/")] for name, label in outcome.bits.items()}
    return {name: Precision(bits[0], bits[1] if len(bits) > 1 else FLOAT_BITS) for name, bits in pairs.items()}
