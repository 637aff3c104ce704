"""Fine-tuning as data: which block becomes quantised when, and for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hawq.checks import check_choice, check_range
from hawq.records import BIT_WIDTHS, FLOAT_BITS, WEIGHTS, BitPlan, Phase, Sensitivity

ORDERS = ("descending", "ascending", "random", "joint", "progressive")
SCHEDULES = {  # what is left of a decaying rate after the share t of its phase
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t: 1 - t,
    "step": lambda t: 0.1 ** math.floor(3 * t),
    "constant": lambda t: 1.0,
}


@dataclass(frozen=True)
class Order:
    """The order in which blocks are quantised and fine-tuned (HAWQ, 1905.03696, Algorithm 2).

    Args:
        order: "descending" takes the block with the largest Ω_i first (HAWQ), "ascending" the reverse (the paper's
            ablation), "random" a seeded shuffle, "joint" all blocks at once, "progressive" all at once, with more bits
            than planned at first (as APoT, 1909.13144, and PROFIT, 2008.04693).
        final_fraction: share of the steps kept for a last phase in which everything is quantised as planned.
        progressive_bits: that all weights and layer inputs have at least, one phase after the other.

    Raises:
        ValueError: an unknown order, a fraction outside 0 … 1, or bit-widths that do not fall from at most 8.
    """

    order: str = "joint"
    final_fraction: float = 0.5
    progressive_bits: tuple[int, ...] = (8, 4)

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_range("final_fraction", self.final_fraction, least=0, most=1)
        if not _is_falling(self.progressive_bits):
            given = self.progressive_bits
            shown = list(given) if isinstance(given, tuple) else given
            raise ValueError(
                f"progressive_bits={shown} is no falling list of bit-widths: give some of 8 … 2, as [8, 4]"
            )


def _is_falling(bit_widths: object) -> bool:
    """Whether these are one or more bit-widths of more than one bit, each smaller than the one before."""
    if not isinstance(bit_widths, (list, tuple)) or not bit_widths:
        return False
    known = all(type(bits) is int and bits in BIT_WIDTHS and bits > 1 for bits in bit_widths)
    return known and all(first > second for first, second in pairwise(bit_widths))


def tuning_order(sensitivity: Sensitivity, plan: BitPlan, order: str, seed: int) -> list[str]:
    """Names of the quantised blocks in the order they enter, by Ω_i at the planned bits, predicted by the plan's score.

    Args:
        sensitivity: of all blocks of the plan.
        plan: its float blocks never enter.
        order: one of `ORDERS`.
        seed: of the shuffle, for order "random".
    """
    names = [name for name, bits in plan.weight_bits().items() if bits < FLOAT_BITS]
    if order == "random":
        shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        return [names[index] for index in shuffled]
    bits, blocks = plan.weight_bits(), {block.name: block for block in sensitivity.blocks}
    omega = {name: sensitivity.predicted(plan.score, blocks[name], WEIGHTS, bits[name]).value for name in names}
    return sorted(names, key=lambda name: omega[name] if order == "ascending" else -omega[name])


def make_phases(
    sensitivity: Sensitivity, plan: BitPlan, order: Order, num_steps: int, lr: float, seed: int
) -> tuple[Phase, ...]:
    """Phases that together take exactly `num_steps`: one per block at `lr`, then a last one that decays to zero.

    With order="joint", or without steps, there is a single phase; with "progressive" one for each of its bit-widths
    that some block of the plan is below, and the last. The steps before the last phase are shared evenly; the first
    phases take the remainder.

    Args:
        sensitivity, plan: from `analyze` and `allocate`.
        order: which block enters when, and the share of steps for the last phase.
        num_steps: optimiser steps in total.
        lr: learning rate at the start of each phase.
        seed: of the shuffle, for order "random".
    """
    names = tuple(tuning_order(sensitivity, plan, order.order, seed))
    if order.order == "joint" or not names or not num_steps:
        return (Phase(names, names, num_steps, lr, 0.0),)
    if order.order == "progressive":
        entering = _narrowing(plan, names, order.progressive_bits)
    else:
        entering = [((name,), names[: index + 1], 1) for index, name in enumerate(names)] + [((), names, 1)]
    final = round(num_steps * order.final_fraction) if len(entering) > 1 else num_steps
    each, extra = divmod(num_steps - final, max(len(entering) - 1, 1))
    steps = [each + (index < extra) for index in range(len(entering) - 1)] + [final]
    ends = [lr] * (len(entering) - 1) + [0.0]
    return tuple(
        Phase(enters, quantized, count, lr, end, least_bits)
        for (enters, quantized, least_bits), count, end in zip(entering, steps, ends, strict=True)
    )


_Entering = tuple[tuple[str, ...], tuple[str, ...], int]  # blocks that enter, all that are quantised, least bits


def _narrowing(plan: BitPlan, names: tuple[str, ...], progressive_bits: Sequence[int]) -> list[_Entering]:
    """One phase for each bit-width that some block is below, then that of the plan; what changes enters anew."""
    planned = [plan.precisions[name] for name in names]
    narrowest = min(min(one.weight_bits, one.activation_bits) for one in planned)
    phases: list[_Entering] = []
    before: list[tuple[int, int]] = [(0, 0)] * len(names)
    for least in (*(bits for bits in progressive_bits if bits > narrowest), 1):
        now = [(max(one.weight_bits, least), max(one.activation_bits, least)) for one in planned]
        changed = (name for name, old, new in zip(names, before, now, strict=True) if old != new)
        phases.append((tuple(changed), names, least))
        before = now
    return phases


def learning_rate(phase: Phase, step: int, schedule: str = "cosine") -> float:
    """final_lr + share(t/T)·(lr − final_lr) at step t of a phase of T steps; share is ½(1 + cos πt/T) for a cosine.

    "step" divides by ten after each third of the phase, "constant" never decays. A phase whose two rates are equal
    keeps that rate. `schedule` is one of `SCHEDULES`.
    """
    return phase.final_lr + SCHEDULES[schedule](step / phase.steps) * (phase.lr - phase.final_lr)
