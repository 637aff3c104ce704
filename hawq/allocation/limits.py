"""What a plan may cost: limits in the units that people use, as linear limits on each block's share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from hawq.allocation.latency import LatencyTable
from hawq.costs import activation_bits, activation_bytes, bops, weight_bits
from hawq.errors import UserError
from hawq.records import FLOAT_BITS, Block, LimitUse, Precision

BlockCost = Callable[[Block, Precision], float]

SIZE_UNITS = ("w_comp", "average_bits", "uniform_bits", "bytes")
UNITS = (*SIZE_UNITS, "bops", "a_comp", "activation_bits", "peak_activation_bytes", "latency_ms")
AT_LEAST = ("w_comp", "a_comp")  # compressions: the plan must reach them; all others must not be exceeded

ENDS = 8  # bits of the first and the last block of a uniform network ("Direct" of the HAWQ papers)

_LEAST, _MOST = 1e-30, 1e30  # of a target; beyond, totals could overflow
_ROUNDING = 1e-6  # of a bit: what a whole number of bits may have lost
_ACTIVATIONS = ("a_comp", "activation_bits", "peak_activation_bytes")
_NEEDED = {"bops": "macs", **dict.fromkeys(_ACTIVATIONS, "num_activations")}  # the counts that blocks must have


@dataclass(frozen=True)
class Limit:
    """One limit: a total over all blocks (or, for a peak, the largest of them) that must not exceed `total`.

    Args:
        field: the setting that it comes from.
        unit: one of `UNITS`.
        target: in that unit.
        cost: a block's share of the total, at given bits.
        scale, offset: `value` is scale / total for compressions, else total / scale + offset; bytes are whole, and so
            are the bits of all weights together.
    """

    field: str
    unit: str
    target: float
    cost: BlockCost
    scale: float = 1.0
    offset: float = 0.0

    @property
    def is_peak(self) -> bool:
        """Whether it limits the largest share instead of the sum."""
        return self.unit == "peak_activation_bytes"

    @property
    def total(self) -> float:
        """The largest allowed total."""
        if self.unit in AT_LEAST:
            return self.scale / self.target
        target = floor(self.target) if self.unit == "bytes" else self.target
        total = (target - self.offset) * self.scale
        return floor(total + _ROUNDING) if self.unit == "uniform_bits" else total

    def value(self, total: float) -> float:
        """A total in the limit's unit."""
        if self.unit in AT_LEAST:
            return self.scale / total
        value = total / self.scale + self.offset
        return ceil(value) if self.unit == "bytes" else value

    def use(self, total: float) -> LimitUse:
        """How much of the limit a plan with this total uses."""
        reached = self.value(total)
        slack = reached - self.target if self.unit in AT_LEAST else self.target - reached
        return LimitUse(self.unit, self.target, reached, slack)

    def __str__(self) -> str:
        return f"{self.field}={self.target:g}" + ("" if self.field.endswith(self.unit) else f" ({self.unit})")


def check_limit(name: str, unit: str, target: float) -> None:
    """Raises ValueError for an unknown unit or a target that is not a positive number; `name` is the field's."""
    if unit not in UNITS:
        raise ValueError(f"{name}: the unit {unit!r} is unknown: give {', '.join(UNITS)}")
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if not number or not _LEAST <= target <= _MOST:
        raise ValueError(f"{name}={target!r} is out of range: give a positive number, at most {_MOST:g} ({unit})")


def make_limits(
    targets: Mapping[str, tuple[str, float]],
    blocks: Sequence[Block],
    overhead_bytes: int | None,
    latency: LatencyTable | None,
) -> tuple[Limit, ...]:
    """Limits on the plans of a network.

    Args:
        targets: field → (unit, target).
        blocks: of the network.
        overhead_bytes: what the packed file holds besides the codes.
        latency: table of milliseconds, for a limit on latency.

    Raises:
        UserError: the blocks lack what a unit needs.
    """
    weights = sum(block.num_weights for block in blocks)
    activations = sum(block.num_activations or 0 for block in blocks)
    limits = []
    for name, (unit, target) in targets.items():
        if unit == "latency_ms" and latency is None:
            raise UserError(f"{name}={target:g} (latency_ms) needs times: give latency=table.json or latency=table.csv")
        _refuse_untraced(name, unit, blocks)
        between, ends = _as_uniform(name, blocks) if unit == "uniform_bits" else (0, 0.0)
        cost, scale, offset = {
            "w_comp": (weight_bits, FLOAT_BITS * weights, 0),
            "average_bits": (weight_bits, weights, 0),
            "uniform_bits": (weight_bits, between, ends),
            "bytes": (weight_bits, 8, overhead_bytes or 0),
            "bops": (bops, 1, 0),
            "a_comp": (activation_bits, FLOAT_BITS * activations, 0),
            "activation_bits": (activation_bits, activations, 0),
            "peak_activation_bytes": (activation_bytes, 1, 0),
            "latency_ms": (latency.cost if latency else weight_bits, 1, 0),
        }[unit]
        limits.append(Limit(name, unit, target, cost, scale, offset))  # type: ignore[arg-type]
    return tuple(limits)


def _as_uniform(name: str, blocks: Sequence[Block]) -> tuple[int, float]:
    """Scale and offset of the bits that a uniform network of the same size has between its ends.

    Raises UserError where there is nothing between the ends.
    """
    ends = {blocks[0].name, blocks[-1].name}
    kept = {block.name: block.fixed_bits or (ENDS if block.name in ends else None) for block in blocks}
    between = sum(block.num_weights for block in blocks if kept[block.name] is None)
    if not between:
        raise UserError(f"{name} (uniform_bits) has no blocks between the first and the last: give unit=average_bits")
    return between, -sum(block.num_weights * (kept[block.name] or 0) for block in blocks) / between


def _refuse_untraced(name: str, unit: str, blocks: Sequence[Block]) -> None:
    needed = _NEEDED.get(unit)
    if needed is None:
        return
    unknown = [block.name for block in blocks if getattr(block, needed) is None]
    if unknown:
        raise UserError(f"{name} ({unit}) needs {needed} of every block, which {', '.join(unknown)} lack")
    if not any(getattr(block, needed) for block in blocks):
        raise UserError(f"{name} ({unit}) limits nothing: {needed} is 0 for every block of this network")
