"""Bits given by hand: a map in YAML, or a plan that an earlier run wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hawq.allocation.allocator import check_activation_bits, check_bit_widths, make_plan
from hawq.components import component
from hawq.records import BitPlan, Block, Precision, Sensitivity


@component("bits/manual")
@dataclass(frozen=True)
class Manual:
    """Weight bits of every block from a map, or whole plans from a `plan.json` of another run.

    Args:
        weights: block name → width, 1 … 8; every block of the model must be named.
        activations: width of every block's activations, 32 for float; a plan file brings its own.
        plan: path of a `plan.json`, instead of `weights`.
        label: the method's name in tables.

    Raises:
        ValueError: a width out of range, both or neither source given, a file that is no plan; `check`: names that
            are not the model's.
        FileNotFoundError: no file at `plan`.
    """

    weights: dict[str, int] = field(default_factory=dict)
    activations: int = 4
    plan: str | None = None
    label: str = "manual"

    def __post_init__(self) -> None:
        if bool(self.weights) == bool(self.plan):
            raise ValueError(
                "bits=manual needs one source: give bits.weights={block: width, ...} or bits.plan=path/to/plan.json"
            )
        check_activation_bits(self.activations)
        for name, precision in self.precisions().items():
            check_bit_widths(f"bits.weights.{name}", [precision.weight_bits])
            check_activation_bits(precision.activation_bits)

    def precisions(self) -> dict[str, Precision]:
        """Block name → bits, from the map or from the file."""
        if self.plan is None:
            return {name: Precision(bits, self.activations) for name, bits in self.weights.items()}
        return read_precisions(Path(self.plan))

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        given, names = self.precisions().keys(), {block.name for block in blocks}
        unknown, missing = sorted(given - names), sorted(names - given)
        if unknown or missing:
            raise ValueError(
                f"{self.plan or 'bits.weights'} is a plan for another model: missing blocks {missing or 'none'}, "
                f"unknown blocks {unknown or 'none'}; name each of {sorted(names)} once"
            )

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        self.check(sensitivity.blocks)
        return make_plan(sensitivity, self.precisions(), self.label, weighting=sensitivity.weighting())


def read_precisions(path: Path) -> dict[str, Precision]:
    """The precisions in a `plan.json`. Raises FileNotFoundError, or ValueError for a file that holds no plan."""
    if not path.is_file():
        raise FileNotFoundError(f"bits.plan={path} does not exist: give the plan.json of an earlier run")
    try:
        rows = json.loads(path.read_text())["precisions"]
        if not rows:
            raise ValueError("it names no block")
        return {name: Precision(int(row["weight_bits"]), int(row["activation_bits"])) for name, row in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"bits.plan={path} is not a plan.json ({error!r}): give the one of an earlier run") from error
