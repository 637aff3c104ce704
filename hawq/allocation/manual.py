"""Bits given by hand: a mapping in YAML, or the plan of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from hawq.allocation.allocator import check_activation_bits, check_bit_width, check_mapping, make_plan
from hawq.components import component
from hawq.records import PLAN_SCHEMA, BitPlan, Block, Precision, Sensitivity, from_dict
from hawq.records.files import read_json
from hawq.records.kinds import Name, repr_of


@component("bits/manual")
@dataclass(frozen=True)
class Manual:
    """Weight bits of all blocks from a mapping, or a whole plan from the `plan.json` of another run.

    Args:
        weights: block name → bit-width, 1 … 8; each block of the model must be named.
        activations: bit-width of all activations, 32 for float; a plan file has its own.
        plan: path of a `plan.json`, instead of `weights`.
        label: the method's name in tables.

    Raises:
        ValueError: a bit-width out of range, both or neither source given, a file that is no plan; `check`: names
            that are not the model's.
        FileNotFoundError: no file at `plan`.
    """

    weights: dict[str, int] = field(default_factory=dict)
    activations: int = 4
    plan: str | None = None
    label: str = "manual"

    def __post_init__(self) -> None:
        if bool(self.weights) == bool(self.plan):
            raise ValueError(
                "weights and plan: Manual needs one source, give weights={block: bit-width, ...} "
                "or plan=path/to/plan.json"
            )
        check_activation_bits(self.activations)
        check_mapping("weights", self.weights, "bits")
        for name, bits in self.weights.items():
            check_bit_width(f"weights.{name}", bits)
        self.precisions()

    def precisions(self) -> dict[str, Precision]:
        """Block name → bits, from the mapping or from the file."""
        if self.plan is None:
            return {name: Precision(bits, self.activations) for name, bits in self.weights.items()}
        return read_precisions(Path(self.plan))

    def check(self, blocks: Sequence[Block], overhead_bytes: int | None = None) -> None:
        """Raises ValueError unless each block is named, and nothing else."""
        given, names = self.precisions().keys(), {block.name for block in blocks}
        unknown, missing = sorted(given - names), sorted(names - given)
        if unknown or missing:
            source = "weights" if self.plan is None else f"plan={self.plan}"
            raise ValueError(
                f"{source} is a plan for another model: missing blocks {missing or 'none'}, "
                f"unknown blocks {unknown or 'none'}; name each of {sorted(names)} once"
            )

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """The given bits as a plan with its costs. Raises ValueError as `check` does."""
        self.check(sensitivity.blocks)
        return make_plan(sensitivity, self.precisions(), self.label, score=sensitivity.score_name())


@dataclass(frozen=True)
class _PlanFile:
    """What is read of a `plan.json`; its costs follow from these bits."""

    precisions: dict[Name, Precision]

    def check_entries(self) -> None:
        """Raises ValueError for a plan without blocks, or float weights."""
        if not self.precisions:
            raise ValueError("it names no block")
        for name, precision in self.precisions.items():
            check_bit_width(f"precisions[{name!r}].weight_bits", precision.weight_bits)


def read_precisions(path: Path) -> dict[str, Precision]:
    """The precisions in a `plan.json`.

    Raises FileNotFoundError, or ValueError that names the file and the entry for anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"plan={path} does not exist: give the plan.json of an earlier run")
    try:
        data = read_json(path)
        found = data.pop("schema", PLAN_SCHEMA)  # may be left out by hand
        if found != PLAN_SCHEMA:
            raise ValueError(f"its schema is {repr_of(found)}, this version reads {PLAN_SCHEMA!r}")
        unknown = sorted(data.keys() - {field.name for field in fields(BitPlan)})
        if unknown:
            raise ValueError(f"it has unknown entries {', '.join(map(repr_of, unknown))}")
        return from_dict({"precisions": data.get("precisions")}, _PlanFile).precisions
    except (ValueError, OverflowError) as error:
        raise ValueError(f"plan={path} is not a plan.json ({error}): give the one of an earlier run") from error
