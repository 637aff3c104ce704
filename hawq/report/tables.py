"""Results as text tables, in the papers' columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hawq.costs import paper_size_mib
from hawq.records import FLOAT_BITS, WEIGHTS, BitPlan, Estimate, Measured, ResultRow, ScoreTable, Sensitivity, Validated
from hawq.report.intervals import agreement, paired_difference

RESULT_COLUMNS = ("method", "w-bits", "a-bits", "accuracy %", "W-Comp", "size", "A-Comp")


def bits_label(bits: Sequence[int]) -> str:
    """The papers' notation: a single bit-width as it is, a mix as its lowest bit-width and "MP"."""
    return str(bits[0]) if len(set(bits)) == 1 else f"{min(bits)} MP"


def size_label(size_bytes: int) -> str:
    """Bytes on disk in KiB or MiB."""
    return f"{size_bytes / 2**10:.1f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:.2f} MiB"


def result_row(
    plan: BitPlan, measured: Measured, size_bytes: int, float_bytes: int, parent: Measured | None = None
) -> ResultRow:
    """The row of a packed network.

    Args:
        plan: of the network.
        measured: on the test images.
        size_bytes: of the packed file on disk.
        float_bytes: of the published float checkpoint.
        parent: the float network on the same images, to be compared with.
    """
    return ResultRow(
        method=plan.method,
        weight_bits=bits_label([precision.weight_bits for precision in plan.precisions.values()]),
        activation_bits=bits_label([precision.activation_bits for precision in plan.precisions.values()]),
        accuracy=measured.accuracy,
        w_comp=plan.cost.w_comp,
        size_bytes=size_bytes,
        a_comp=plan.cost.a_comp,
        paper_size_mib=paper_size_mib(float_bytes, plan.cost.w_comp),
        num_images=measured.num_images,
        difference=paired_difference(measured, parent) if parent else None,
        agreement=agreement(measured, parent) if parent else None,
    )


def result_cells(row: ResultRow) -> tuple[str, ...]:
    """The cells of one row of the results table, as in `RESULT_COLUMNS`."""
    return (
        row.method,
        _with_mean(row.weight_bits, row.w_comp),
        _with_mean(row.activation_bits, row.a_comp),
        f"{row.accuracy:.2f}",
        f"{row.w_comp:.2f}×",
        size_label(row.size_bytes),
        "–" if row.a_comp is None else f"{row.a_comp:.2f}×",
    )


def plan_cells(plan: BitPlan) -> tuple[str, ...]:
    """The cells of a plan that was not trained, as in `RESULT_COLUMNS`; its size is an upper bound."""
    cost = plan.cost
    weights, activations = (
        bits_label([getattr(precision, f"{kind}_bits") for precision in plan.precisions.values()])
        for kind in ("weight", "activation")
    )
    return (
        plan.method,
        _with_mean(weights, cost.w_comp),
        _with_mean(activations, cost.a_comp),
        "–",
        f"{cost.w_comp:.2f}×",
        size_label(cost.weight_bytes if cost.packed_bytes is None else cost.packed_bytes),
        "–" if cost.a_comp is None else f"{cost.a_comp:.2f}×",
    )


def _with_mean(label: str, compression: float | None) -> str:
    """A mix of bit-widths with its mean, because the papers' notation names the lowest one alone."""
    if not compression or not label.endswith("MP"):
        return label
    return f"{label} (mean {FLOAT_BITS / compression:.1f})"


def results_table(rows: Sequence[ResultRow]) -> str:
    """The results table as text."""
    return markdown(RESULT_COLUMNS, [result_cells(row) for row in rows])


def sensitivity_rows(sensitivity: Sensitivity, plan: BitPlan | None) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: block, n_i, what was measured for the score (λ_i, say) with error and cost, S_i.

    With a plan also its bits and the increase that the score predicts for the weights at these, with its error where
    the score itself was measured. What was found of the curvature is left out for a score that needs none. Raises
    UserError when the analysis lacks the plan's score or bits.
    """
    score = plan.score if plan else sensitivity.score_name()
    known = all(row.curvature(score) is not None for row in sensitivity.rows)
    columns = ("block", "weights", *((score, "error", "products", "gradients") if known else ()), "score")
    itself = not known and sensitivity.table(score).seconds is not None
    columns += ("bits", "a-bits", "omega", *(("omega error",) if itself else ())) if plan else ()
    rows: list[tuple[Any, ...]] = []
    for row in sensitivity.rows:
        block, found = row.block, row.curvature(score)
        cells = (found.value, found.error, found.products, _cost(found)) if known and found else ()
        planned: tuple[Any, ...] = ()
        if plan:
            bits = plan.precisions[block.name]
            omega = sensitivity.predicted(score, block, WEIGHTS, bits.weight_bits)
            planned = (bits.weight_bits, bits.activation_bits, omega.value, *((omega.error,) if itself else ()))
        rows.append((block.name, block.num_weights, *cells, sensitivity.rank(score, block), *planned))
    return columns, rows


def limits_table(plan: BitPlan) -> str:
    """What the plan reaches of each limit, how close it is to the optimum, and how certain it is."""
    rows = [[use.unit, *(f"{value:.6g}" for value in (use.target, use.reached, use.slack))] for use in plan.limits]
    lines = [markdown(("limit", "target", "reached", "slack"), rows)] if rows else []
    if plan.objective is not None:
        proven = {None: "", 0.0: ", proven to be the least"}.get(
            plan.gap, f", at most {plan.gap or 0:.2g} above the least"
        )
        lines.append(f"{plan.method}: Σ Ω = {plan.objective:.6g} ({plan.score}){proven}")
    if plan.confidence is not None:
        lines.append(str(plan.confidence))
    return "\n".join(lines)


def plans_table(first: BitPlan, second: BitPlan) -> str:
    """Two plans side by side: the blocks whose bits differ, then the cost in each unit.

    Raises ValueError when they are not about the same blocks.
    """
    if first.precisions.keys() != second.precisions.keys():
        odd = sorted(first.precisions.keys() ^ second.precisions.keys())
        raise ValueError(f"the plans are about different networks: blocks {odd} are in one of them only")
    rows = [
        (name, f"{a.weight_bits} / {a.activation_bits}", f"{b.weight_bits} / {b.activation_bits}")
        for name, a in first.precisions.items()
        if (b := second.precisions[name]) != a
    ]
    same = len(first.precisions) - len(rows)
    numbers = [("objective", first.objective, second.objective)]
    numbers += [(f.name, getattr(first.cost, f.name), getattr(second.cost, f.name)) for f in fields(first.cost)]
    rows += [(name, _number(ours), _number(theirs)) for name, ours, theirs in numbers]
    table = markdown(("weight / activation bits", first.method, second.method), rows)
    return f"{table}\n{same} of {len(first.precisions)} blocks have the same bits in both"


def validation_rows(result: Validated) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: each score, its ρ at each bit-width and overall, its gain over the plain error, its cost."""
    bit_widths = list(dict.fromkeys(row.bits for row in result.truth.increases))
    columns = ("score of", "solver", "weighting", *(f"ρ {bits} bits" for bits in bit_widths))
    columns += ("ρ all", "low", "high", "gain", "gain low", "gain high", "seconds", "gradients")
    known = {(found.kind, found.score, found.bits): found for found in result.correlations}
    rows = []
    for score in result.scores:
        whole = known[score.kind, score.name, None]
        each = [known[score.kind, score.name, bits].spearman for bits in bit_widths]
        about, cost = (score.kind, score.name, score.weighting), (score.seconds, score.gradient_equivalents)
        nothing = (None, None)
        gain = (whole.gain, *(whole.gain_interval or nothing))
        rows.append((*about, *each, whole.spearman, *(whole.interval or nothing), *gain, *cost))
    return columns, rows


def validation_table(result: Validated) -> str:
    """The correlations of all scores, and below them a summary of the true increases."""
    truth = result.truth
    by_kl = all(row.kl is not None for row in truth.increases)
    title = (
        f"Spearman's ρ of predicted Ω with the true {'KL' if by_kl else 'increase of the loss'} of each block alone on "
        f"{truth.num_samples} held-out images "
        f"(float network: loss {truth.loss:.4g}, accuracy {truth.accuracy:.2f} %); gain: over the plain error; "
        "low and high: 95 % of the resamples of the blocks"
    )
    columns, rows = validation_rows(result)
    scores = markdown(columns, [[_short(cell) for cell in row] for row in rows])
    increases = []
    for kind, bits in dict.fromkeys((row.kind, row.bits) for row in truth.increases):
        own = [row for row in truth.increases if (row.kind, row.bits) == (kind, bits)]
        losses, sure = [row.loss for row in own], sum(row.is_sure for row in own)
        cells = [*_ends([row.kl for row in own if row.kl is not None]), *_ends(losses)]
        increases.append((kind, bits, *cells, f"{sure} of {len(own)}", f"{max(row.accuracy for row in own):.2f}"))
    seen = (
        *("quantised", "bits", "KL, least", "median", "largest", "loss, least", "median", "largest"),
        *("above 2 standard errors", "largest loss of accuracy"),
    )
    return "\n\n".join((title, scores, markdown(seen, increases)))


def _ends(values: Sequence[float]) -> list[str]:
    """Least, median and largest value as text."""
    if not values:
        return ["–"] * 3
    return [f"{end:.2g}" for end in (min(values), statistics.median(values), max(values))]


def _short(cell: Any) -> str:
    """A cell as text; two decimals for a number."""
    return "–" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def sensitivity_table(sensitivity: Sensitivity, plan: BitPlan | None) -> str:
    """`sensitivity_rows` as a table for the console, and below it what the measured scores cost."""
    columns, rows = sensitivity_rows(sensitivity, plan)
    shown = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join([markdown(columns, shown), *map(score_cost, filter(_is_measured, sensitivity.scores))])


def _is_measured(table: ScoreTable) -> bool:
    return table.seconds is not None


def score_cost(table: ScoreTable) -> str:
    """What a measured score cost, in one line."""
    gradients = table.gradient_equivalents
    unit = "" if gradients is None else f" (those of {gradients:.3g} gradients)"
    return f"score {table.score}: {table.num_samples} images, {table.seconds or 0:.3g} s{unit}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that reads well as plain text and as Markdown, cells padded to the longest of their column."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    lengths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "| " + " | ".join(f"{cell:<{length}}" for cell, length in zip(row, lengths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (length + 2) for length in lengths) + "|", *lines[1:]])


def _cost(estimate: Estimate) -> float | str:
    """Gradient equivalents, where they were measured."""
    return "–" if estimate.gradient_equivalents is None else estimate.gradient_equivalents
