"""Fine-tuning as data: which block becomes quantised when, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hawq.checks import check_choice, check_range
from hawq.records import FLOAT_BITS, WEIGHTS, BitPlan, Phase, Sensitivity

ORDERS = ("descending", "ascending", "random", "joint")
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
            ablation), "random" a seeded shuffle, "joint" all blocks at once.
        final_fraction: share of the steps kept for a last phase in which everything is quantised.

    Raises:
        ValueError: an unknown order, or a fraction outside 0 … 1.
    """

    order: str = "joint"
    final_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_range("final_fraction", self.final_fraction, least=0, most=1)


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

    With order="joint", or without steps, there is a single phase. Blocks share the steps before the last phase evenly;
    the first ones take the remainder.

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
    final = round(num_steps * order.final_fraction)
    each, extra = divmod(num_steps - final, len(names))
    phases = [Phase((name,), names[: index + 1], each + (index < extra), lr, lr) for index, name in enumerate(names)]
    return (*phases, Phase((), names, final, lr, 0.0))


def learning_rate(phase: Phase, step: int, schedule: str = "cosine") -> float:
    """final_lr + share(t/T)·(lr − final_lr) at step t of a phase of T steps; share is ½(1 + cos πt/T) for a cosine.

    "step" divides by ten after each third of the phase, "constant" never decays. A phase whose two rates are equal
    keeps that rate. `schedule` is one of `SCHEDULES`.
    """
    return phase.final_lr + SCHEDULES[schedule](step / phase.steps) * (phase.lr - phase.final_lr)
