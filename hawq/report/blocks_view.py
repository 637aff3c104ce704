"""The network as a strip of blocks: bits, predicted increases, and why a block has the bits that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from hawq.errors import UserError
from hawq.records import (
    FLOAT_BITS,
    MEASURED,
    SCORES,
    WEIGHTS,
    BitPlan,
    Block,
    BlockSensitivity,
    Precision,
    Sensitivity,
    parts_of,
)
from hawq.report.run_folder import RunFolder
from hawq.report.wording import count, number, plural

SYMBOLS = {"eigenvalue": "λ", "trace": "Tr H", "proxy": "stand-in for λ"}


@dataclass(frozen=True)
class Saving:
    """What one bit-width less would save and cost for one block."""

    block: str
    bits: int
    fewer: int
    more_loss: float
    saved_bytes: float

    @property
    def per_byte(self) -> float:
        """What each byte saved costs."""
        return self.more_loss / self.saved_bytes


def score_of(run: RunFolder) -> str:
    """The score that decided the plan, or else the one that an allocation would take."""
    assert run.sensitivity is not None
    known = {table.score for table in run.sensitivity.scores}
    if run.plan and known.issuperset(parts_of(run.plan.score or "")):
        return str(run.plan.score)
    return run.sensitivity.score_name()


def formula(score: str) -> str:
    """A score as a formula."""
    parts = [SCORES.get(part, part).replace("_i", "ᵢ") for part in parts_of(score)]
    return parts[0] if len(parts) == 1 else f"the geometric mean of {' and '.join(parts)}"


def predicted(sensitivity: Sensitivity, score: str, block: Block, bits: int) -> float | None:
    """The increase that a score predicts for a block's weights; None where it was not analysed."""
    try:
        return sensitivity.predicted(score, block, WEIGHTS, bits).value
    except UserError:
        return None


def strip(run: RunFolder) -> dict[str, Any]:
    """Blocks in network order: name, weights, details as (label, text) pairs, and bit-width → shade 0 … 1.

    Shades are the logarithms of the predicted increases, common to all plans of the page.
    """
    sensitivity, score = run.sensitivity, score_of(run)
    assert sensitivity is not None
    increases = {
        block.name: {bits: predicted(sensitivity, score, block, bits) for bits in range(1, 9)}
        for block in sensitivity.blocks
    }
    shown = _shown_bits(run)
    positive = [
        value
        for name, row in increases.items()
        for bits, value in row.items()
        if value and value > 0 and (not shown or bits in shown[name])
    ]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    measured = _measured(run)
    blocks = []
    for row in sensitivity.rows:
        name = row.block.name
        precision = run.plan.precisions.get(name) if run.plan else None
        shades = {bits: _shade(value, low, high) for bits, value in increases[name].items() if value is not None}
        blocks.append(
            {
                "name": name,
                "weights": row.block.num_weights,
                "bits": precision.weight_bits if precision else None,
                "increase": increases[name].get(precision.weight_bits) if precision else increases[name].get(4),
                "shades": shades,
                "details": _details(run, row, score, precision, measured.get(name)),
            }
        )
    return {"blocks": blocks, "low": number(low), "high": number(high), "formula": formula(score)}


def _shown_bits(run: RunFolder) -> dict[str, set[int]]:
    """Block → bit-widths that the plan or a plan of the frontier gives it."""
    if run.plan is None:
        return {}
    plans: list[Mapping[str, Precision]] = [run.plan.precisions]
    plans += [point.precisions for point in run.frontier.points if point.precisions] if run.frontier else []
    return {name: {plan[name].weight_bits for plan in plans if name in plan} for name in run.plan.precisions}


def _shade(value: float, low: float, high: float) -> float:
    if value <= 0:
        return 0.0
    if high <= low:
        return 0.5
    return round(min(1.0, max(0.0, math.log(value / low) / math.log(high / low))), 3)


def _measured(run: RunFolder) -> dict[str, str]:
    """Block → the increase of the loss that `validate` measured at its planned bits."""
    if run.validation is None or run.plan is None:
        return {}
    found = {}
    for one in run.validation.truth.increases:
        precision = run.plan.precisions.get(one.block)
        if one.kind == WEIGHTS and precision and precision.weight_bits == one.bits:
            found[one.block] = f"{number(one.loss)} ± {number(one.loss_error)}"
    return found


def _details(
    run: RunFolder, row: BlockSensitivity, score: str, precision: Precision | None, measured: str | None
) -> list[tuple[str, str]]:
    """What hovering over a block tells."""
    assert run.sensitivity is not None
    block = row.block
    kind = next((name for name in (*parts_of(score), *MEASURED) if row.curvature(name)), score)
    curvature = row.curvature(kind)
    found: list[tuple[str, str]] = []
    if precision:
        widths = f"{of_bits(precision.weight_bits)} weights, {of_bits(precision.activation_bits)} inputs"
        found.append(("Bits", widths))
        value = predicted(run.sensitivity, score, block, precision.weight_bits)
        if value is not None:
            error = run.sensitivity.measured(score, block, WEIGHTS, precision.weight_bits).error
            found.append(("Predicted increase", f"{number(value)} ± {number(error)}" if error else number(value)))
        if measured:
            found.append(("Measured increase", measured))
    if curvature is not None:
        known = curvature.confidence
        sure = "no bound" if known is None else "certain" if known == 1 else f"{100 * known:.0f} %"
        found.append((SYMBOLS.get(kind, kind), f"{number(curvature.value)} ± {number(curvature.error)} ({sure})"))
    found.append(("Weights", count(block.num_weights)))
    if precision:
        found.append(("Bytes of weights", count(math.ceil(block.num_weights * precision.weight_bits / 8))))
    if block.macs is not None:
        found.append(("MACs", count(block.macs)))
    saving = saving_of(run, block) if run.plan else None
    if saving:
        text = f"+{number(saving.more_loss)} for {count(round(saving.saved_bytes))} bytes saved"
        found.append((f"At {plural(saving.fewer, 'bit')}", text))
    if block.fixed_bits is not None:
        found.append(("Fixed", f"at {bits_text(block.fixed_bits)}"))
    if block.tie_group is not None:
        found.append(("Tied", f"same bits as group {block.tie_group}"))
    found.append(("Layers", ", ".join(block.layers)))
    return found


def bits_text(bits: int) -> str:
    """A bit-width in words."""
    return "float" if bits == FLOAT_BITS else plural(bits, "bit")


def of_bits(bits: int) -> str:
    """A bit-width before a noun: "4-bit", "float"."""
    return "float" if bits == FLOAT_BITS else f"{bits}-bit"


def saving_of(run: RunFolder, block: Block) -> Saving | None:
    """What the next lower bit-width of a block would save and cost; None where there is none or it is not known."""
    assert run.sensitivity is not None and run.plan is not None
    score = score_of(run)
    bits = run.plan.precisions[block.name].weight_bits
    lower = [
        other
        for other in _candidates(run)
        if other < bits and predicted(run.sensitivity, score, block, other) is not None
    ]
    now = 0.0 if bits == FLOAT_BITS else predicted(run.sensitivity, score, block, bits)
    if not lower or now is None or block.fixed_bits is not None:
        return None
    fewer = max(lower)
    then = predicted(run.sensitivity, score, block, fewer) or 0.0
    return Saving(block.name, bits, fewer, then - now, block.num_weights * (bits - fewer) / 8)


def _candidates(run: RunFolder) -> tuple[int, ...]:
    """The bit-widths that the allocation chose from."""
    given = run.config.get("bits", {}).get("candidates")
    return tuple(given) if isinstance(given, (list, tuple)) and given else tuple(range(2, 9))


def why_most_bits(run: RunFolder, plan: BitPlan) -> str:
    """Which blocks have the most bits, how sensitive each of their weights is, and what one bit less would do."""
    assert run.sensitivity is not None
    bits = plan.weight_bits()
    most, fewest = max(bits.values()), min(bits.values())
    names = [name for name, width in bits.items() if width == most]
    if most == fewest:
        return f"None: every block has {bits_text(most)}, as {plan.method} asks for."
    begin = f"{_listed(names)} {'has' if len(names) == 1 else 'have'} the most bits, {most}"
    blocks = {block.name: block for block in run.sensitivity.blocks}
    if all(blocks[name].fixed_bits is not None for name in names):
        return f"{begin}: they are fixed there, not chosen."
    if plan.searched:
        begin = f"{begin}; whole plans were measured, and this one was the best of {plan.searched.evaluations}"
    elif plan.objective is None:
        return f"{begin}: {plan.method} gives bits out by its own rule, not by a score."
    return f"{begin}.{_per_weight(run, blocks, names, fewest)}{_one_less(run, blocks, names)}"


def _per_weight(run: RunFolder, blocks: Mapping[str, Block], names: list[str], bits: int) -> str:
    """How the most sensitive of these blocks compares with the others, weight by weight, all at the same bits."""
    assert run.sensitivity is not None
    score = score_of(run)
    shares = {
        name: value / block.num_weights
        for name, block in blocks.items()
        if (value := predicted(run.sensitivity, score, block, bits)) is not None
    }
    own = max((name for name in names if name in shares), key=lambda name: shares[name], default=None)
    middle = median(shares.values()) if shares else 0.0
    if own is None or middle <= 0:
        return ""
    place = 1 + sum(value > shares[own] for value in shares.values())
    rank = "the most sensitive" if place == 1 else f"number {place} in sensitivity"
    return (
        f" Weight for weight, {own} is {rank} of {len(shares)} blocks: at {plural(bits, 'bit')}, the fewest in this "
        f"plan, each of its weights would raise the predicted loss {number(shares[own] / middle)} times as much as in "
        f"the median block, and one bit for its {count(blocks[own].num_weights)} weights takes "
        f"{count(math.ceil(blocks[own].num_weights / 8))} bytes."
    )


def _one_less(run: RunFolder, blocks: Mapping[str, Block], names: list[str]) -> str:
    """What taking a bit away would save and cost, for the block among these where it would cost most."""
    savings = [saving for name in names if (saving := saving_of(run, blocks[name]))]
    if not savings:
        return ""
    own = max(savings, key=lambda one: one.more_loss)
    text = (
        f" Taking {plural(own.bits - own.fewer, 'bit')} from {own.block} would save {count(round(own.saved_bytes))} "
        f"bytes and add {number(own.more_loss)} to the predicted increase"
    )
    others = [saving for block in blocks.values() if (saving := saving_of(run, block)) and block.name not in names]
    least = min(others, key=lambda one: one.per_byte, default=None)
    if least is None or not 0 < least.per_byte < own.per_byte:
        return f"{text}."
    times = number(own.per_byte / least.per_byte)
    return f"{text}, {times} times as much per byte saved as in {least.block}, where a bit costs least."


def _listed(names: list[str], most: int = 4) -> str:
    shown = names[:most]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
