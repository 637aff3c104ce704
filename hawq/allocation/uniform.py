"""One width for all blocks: the papers' "Direct" baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hawq.allocation.allocator import BIT_WIDTHS, CANDIDATES, check_activation_bits, check_bit_widths, make_plan
from hawq.components import component
from hawq.records import BitPlan, Block, Precision, Sensitivity


@component("bits/uniform")
@dataclass(frozen=True)
class UniformBits:
    """Every block at `weights` bits, the first and the last at `ends` ("Direct" of the HAWQ papers); fixed ones stay.

    Args:
        weights: width of the blocks between, 1 … 8.
        ends: width of the first and the last block, 1 … 8.
        activations: width of every block's activations, 32 for float.

    Raises:
        ValueError: a width out of range.
    """

    weights: int = 3
    ends: int = 8
    activations: int = 4

    def __post_init__(self) -> None:
        check_bit_widths("bits.weights", [self.weights])
        check_bit_widths("bits.ends", [self.ends])
        check_activation_bits(self.activations)

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Any network can be given uniform bits."""

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        ends = {sensitivity.blocks[0].name, sensitivity.blocks[-1].name}
        bits = {
            block.name: block.fixed_bits or (self.ends if block.name in ends else self.weights)
            for block in sensitivity.blocks
        }
        plan = {name: Precision(width, self.activations) for name, width in bits.items()}
        return make_plan(sensitivity, plan, "direct uniform", weighting=sensitivity.weighting())


def direct_baseline(sensitivity: Sensitivity, plan: BitPlan) -> BitPlan:
    """The widest uniform plan (ends at 8 bits) that is no larger than `plan`, or the narrowest one if none is.

    One bit is tried only where the plan has such blocks.
    """
    narrowest = min(precision.weight_bits for precision in plan.precisions.values())
    bit_widths = BIT_WIDTHS if narrowest < CANDIDATES[0] else CANDIDATES
    activations = max(precision.activation_bits for precision in plan.precisions.values())
    plans = [UniformBits(width, 8, activations).allocate(sensitivity) for width in bit_widths]
    fitting = [direct for direct in plans if direct.cost.weight_bytes <= plan.cost.weight_bytes]
    return fitting[-1] if fitting else plans[0]
