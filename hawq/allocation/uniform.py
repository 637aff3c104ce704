"""One bit-width for all blocks: the papers' "Direct" baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hawq.allocation.allocator import BIT_WIDTHS, CANDIDATES, check_activation_bits, check_bit_width, make_plan
from hawq.allocation.limits import ENDS
from hawq.components import component
from hawq.records import BitPlan, Block, Precision, Sensitivity

_AS_LARGE = 1.01  # bytes of two plans that are compared as equally large


@component("bits/uniform")
@dataclass(frozen=True)
class UniformBits:
    """Every block at `weights` bits, the first and the last at `ends` ("Direct" of the HAWQ papers); fixed ones stay.

    Args:
        weights: bit-width of the blocks in between, 1 … 8.
        ends: bit-width of the first and the last block, 1 … 8.
        activations: bit-width of all activations, 32 for float.

    Raises:
        ValueError: a bit-width out of range.
    """

    weights: int = 3
    ends: int = ENDS
    activations: int = 4

    def __post_init__(self) -> None:
        check_bit_width("weights", self.weights)
        check_bit_width("ends", self.ends)
        check_activation_bits(self.activations)

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Never raises: any network can be given uniform bits."""

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The uniform plan. Raises UserError for bits at which the weights were not analysed."""
        ends = {sensitivity.blocks[0].name, sensitivity.blocks[-1].name}
        bits = {
            block.name: block.fixed_bits or (self.ends if block.name in ends else self.weights)
            for block in sensitivity.blocks
        }
        plan = {name: Precision(weights, self.activations) for name, weights in bits.items()}
        return make_plan(sensitivity, plan, "direct uniform", score=sensitivity.score_name())


def direct_baseline(sensitivity: Sensitivity, plan: BitPlan) -> BitPlan:
    """The uniform plan (ends at 8 bits) with the most bits that is as large as `plan` or smaller, else the smallest.

    As large is up to a hundredth larger, for a plan may leave some of its budget unused. One bit is tried only where
    the plan has such blocks. Raises UserError for bits that were not analysed.
    """
    fewest = min(precision.weight_bits for precision in plan.precisions.values())
    bit_widths = BIT_WIDTHS if fewest < CANDIDATES[0] else CANDIDATES
    activations = max(precision.activation_bits for precision in plan.precisions.values())
    plans = [UniformBits(bits, ENDS, activations).allocate(sensitivity) for bits in bit_widths]
    fitting = [direct for direct in plans if direct.cost.weight_bytes <= _AS_LARGE * plan.cost.weight_bytes]
    return fitting[-1] if fitting else plans[0]
