"""Mixed precision under a size limit: least Σ Ω_i(b_i) among the assignments that keep the precision order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from hawq.allocation.allocator import (
    WIDTHS,
    SizeLimit,
    candidates_for,
    check_activation_bits,
    check_widths,
    make_plan,
)
from hawq.records import BitPlan, Block, Sensitivity


@dataclass(frozen=True)
class Mixed:
    """HAWQ's allocation: bits never increase from a larger S_i to a smaller one (V1, 1905.03696), and among those
    assignments under the limit the one with the least Σ Ω_i(b_i) is taken, by integer programming (SciPy, HiGHS).

    Args:
        target: the size limit in `unit`.
        unit: "w_comp" (compression of the weights, at least), "average_bits" or "bytes" of packed weights (at most).
        candidates: widths to choose from, 2 … 8.
        activations: width of every block's activations, 32 for float.
        reverse: turns the precision order round (the paper's ablation "HAWQ-Reverse-Precision").

    Raises:
        ValueError: a value out of range; `check` and `allocate`: a limit that cannot be met, with the feasible range.
    """

    target: float = 13.1
    unit: str = "w_comp"
    candidates: tuple[int, ...] = WIDTHS
    activations: int = 4
    reverse: bool = False

    def __post_init__(self) -> None:
        SizeLimit(self.target, self.unit)
        check_widths("bits.candidates", self.candidates)
        check_activation_bits(self.activations)

    def check(self, blocks: Sequence[Block]) -> None:
        SizeLimit(self.target, self.unit).check(blocks, candidates_for(blocks, self.candidates))

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        self.check(sensitivity.blocks)
        limit = SizeLimit(self.target, self.unit).total_bits(sum(b.num_weights for b in sensitivity.blocks))
        candidates = candidates_for(sensitivity.blocks, self.candidates)
        order = [name for name in sensitivity.precision_order() if len(candidates[name]) > 1]
        if self.reverse:
            order.reverse()
        bits, gap = minimise_omega(sensitivity, candidates, order, limit)
        return make_plan(sensitivity, bits, self.activations, "HAWQ reversed" if self.reverse else "HAWQ", gap)


def minimise_omega(
    sensitivity: Sensitivity, candidates: Mapping[str, Sequence[int]], order: Sequence[str], limit_bits: float
) -> tuple[dict[str, int], float]:
    """min Σ_i Ω_i(b_i) over x_ib ∈ {0, 1}, s.t. Σ_b x_ib = 1, Σ b·n_i·x_ib ≤ limit, bits falling along `order`.

    Returns the bits of every block and the relative optimality gap. Raises ValueError when no assignment exists.
    """
    choices = [(row.block, bits) for row in sensitivity.rows for bits in candidates[row.block.name]]
    omegas = np.array([sensitivity.row(block.name).omega(bits) for block, bits in choices])
    sizes = np.array([[float(block.num_weights * bits) for block, bits in choices]])
    names = [row.block.name for row in sensitivity.rows]
    constraints = [
        LinearConstraint(_one_each(choices, names), 1, 1),
        LinearConstraint(sizes / limit_bits, -np.inf, 1),
    ]
    if len(order) > 1:
        constraints.append(LinearConstraint(_falling(choices, order), 0, np.inf))
    scale = omegas.max() or 1.0
    result = milp(omegas / scale, integrality=np.ones(len(choices)), bounds=Bounds(0, 1), constraints=constraints)
    if result.x is None:
        raise ValueError(f"no assignment keeps the precision order within {limit_bits / 8:.0f} bytes: {result.message}")
    chosen = {block.name: bits for (block, bits), x in zip(choices, result.x, strict=True) if x > 0.5}
    return chosen, float(result.mip_gap or 0.0)


def _one_each(choices: Sequence[tuple[Block, int]], names: Sequence[str]) -> lil_array:
    """Row i sums the choices of block i."""
    row_of = {name: row for row, name in enumerate(names)}
    matrix = lil_array((len(names), len(choices)))
    for column, (block, _) in enumerate(choices):
        matrix[row_of[block.name], column] = 1
    return matrix


def _falling(choices: Sequence[tuple[Block, int]], order: Sequence[str]) -> lil_array:
    """Row k is bits of order[k] minus bits of order[k+1]."""
    place = {name: k for k, name in enumerate(order)}
    matrix = lil_array((len(order) - 1, len(choices)))
    for column, (block, bits) in enumerate(choices):
        k = place.get(block.name)
        if k is None:
            continue
        if k < len(order) - 1:
            matrix[k, column] = bits
        if k > 0:
            matrix[k - 1, column] = -bits
    return matrix
