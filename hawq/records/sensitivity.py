"""What the analysis finds: curvature and quantisation errors of each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from hawq.errors import UserError
from hawq.records.blocks import Block
from hawq.records.derived import MEASURED, derived_tables
from hawq.records.kinds import FLOAT_BITS, Amount, BitsKey, Count, Name, Number
from hawq.records.scores import (
    ACTIVATIONS,
    NOTHING,
    SCORES,
    WEIGHTS,
    WHOLE_PLANS,
    Prediction,
    ScoreTable,
    combined,
    parts_of,
)


@dataclass(frozen=True)
class Estimate:
    """A number with its error, and what it cost.

    Args:
        value: the number.
        error: in the unit of the value; `confidence` says what it means.
        products: matrix-vector products (or other readings) on all samples.
        converged: whether the solver reached its tolerance.
        seconds: all time spent, including work on a part of the samples.
        gradient_equivalents: those seconds over the seconds of one forward and backward pass of the network.
        confidence: the probability with which the true value lies within `error` of `value`: 1 where that is certain,
            0.99 for eigenvalues by Lanczos, 0.95 for those by rows, 0.68 for a standard error. None where the error is
            no bound: the residual of power iteration, within which there is some eigenvalue; a proxy; an older file.
    """

    value: Number
    error: Amount
    products: Count
    converged: bool
    seconds: Amount | None = field(default=None, compare=False)
    gradient_equivalents: Amount | None = field(default=None, compare=False)
    confidence: Amount | None = None

    def __str__(self) -> str:
        mark = "" if self.converged else ", not converged"
        error = f"± {self.error:.2g}" if self.confidence is not None else f"(error {self.error:.2g}, no bound)"
        return f"{self.value:.4g} {error} ({self.products} products{mark})"


@dataclass(frozen=True)
class BlockSensitivity:
    """One row of the analysis: what was found of H_ii, and ‖Q_b(W_i) − W_i‖²₂ for each candidate bit-width b.

    Args:
        block: which one.
        eigenvalue: λ_i, the largest algebraic eigenvalue of H_ii.
        weight_errors: bits → ‖Q_b(W_i) − W_i‖²₂.
        trace: Tr(H_ii).
        activation_trace: mean over samples of the trace of the Hessian with respect to the block's input activations
            (HAWQ-V2, 1911.03852, §3.5).
        activation_errors: bits → mean over samples of ‖Q_b(a) − a‖²₂ of these activations.
        smallest: the other end of the spectrum.
        proxy: what stands in for λ_i when no curvature was measured.
    """

    block: Block
    eigenvalue: Estimate | None
    weight_errors: dict[BitsKey, Amount]
    trace: Estimate | None = None
    activation_trace: Estimate | None = None
    activation_errors: dict[BitsKey, Amount] | None = None
    smallest: Estimate | None = None
    proxy: Estimate | None = None

    def curvature(self, score: str) -> Estimate | None:
        """What was measured of λ_i, Tr(H_i) or the proxy, for the score of that name; None for any other score."""
        return getattr(self, score) if score in MEASURED else None


@dataclass(frozen=True)
class Sensitivity:
    """The result of the analysis: what was measured of each block, and the increases of the loss that follow from it.

    Args:
        rows: one per block, in network order.
        solver: name of what measured the curvature.
        num_samples: samples that the loss is averaged over.
        loss: its mean over them.
        overhead_bytes: what the packed file holds besides the weights' codes; if None, a size in bytes is that of the
            codes alone.
        scores: one table per score. Those that follow from the rows (`derived_tables`) are added where they are absent.
    """

    rows: tuple[BlockSensitivity, ...]
    solver: Name
    num_samples: Count
    loss: Number
    overhead_bytes: Count | None = None
    scores: tuple[ScoreTable, ...] = ()

    def __post_init__(self) -> None:
        given = {table.score for table in self.scores}
        more = (table for table in derived_tables(self.rows) if table.score not in given)
        object.__setattr__(self, "scores", (*self.scores, *more))

    def check_entries(self) -> None:
        """What a file must hold besides entries of the right kind.

        Raises UserError for blocks or scores of the same name, and for scores of blocks that are not there.
        """
        names, scores = [block.name for block in self.blocks], [table.score for table in self.scores]
        for what, listed in (("blocks", names), ("scores", scores)):
            twice = sorted({name for name in listed if listed.count(name) > 1})
            if twice:
                raise UserError(f"the {what} {', '.join(twice)} are listed more than once: give one row per block")
        for table in self.scores:
            unknown = sorted({*table.weights, *table.activations, *table.ranks} - set(names))
            if unknown:
                raise UserError(f"the score {table.score} names unknown blocks {unknown[:3]}: give blocks of the rows")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in network order."""
        return tuple(row.block for row in self.rows)

    def row(self, name: str) -> BlockSensitivity:
        """The row of one block. Raises KeyError for an unknown name."""
        return {row.block.name: row for row in self.rows}[name]

    def with_rows(self, rows: Sequence[BlockSensitivity]) -> Sensitivity:
        """The same with other rows, and with the scores that follow from these alone."""
        return replace(self, rows=tuple(rows), scores=())

    def with_scores(self, tables: Sequence[ScoreTable]) -> Sensitivity:
        """The same with further scores; those of a name that is there already take its place."""
        names = {table.score for table in tables}
        kept = (table for table in self.scores if table.score not in names)
        return replace(self, scores=(*kept, *tables))

    def score_name(self, asked: str = "auto") -> str:
        """The score that is asked for.

        "auto" is kl where it was measured of all blocks, else the first of `SCORES` that was found.
        """
        if asked != "auto":
            return "error" if asked == "none" else asked  # its name until hawq.sensitivity/2
        complete = {table.score for table in self.scores if table.weights.keys() >= {b.name for b in self.blocks}}
        if WHOLE_PLANS in complete:
            return WHOLE_PLANS
        return next((name for name in SCORES if name in complete), "error")

    def table(self, score: str) -> ScoreTable:
        """All predictions of one score. Raises UserError when the analysis has not found it."""
        if score not in self._tables and len(parts := parts_of(score)) > 1:
            self._tables[score] = combined(score, [self.table(part) for part in parts])
        if score not in self._tables:
            others = self._others(score)
            raise UserError(f"the analysis has no {score}: give score={others}, or run an analysis that finds it")
        return self._tables[score]

    @cached_property
    def _tables(self) -> dict[str, ScoreTable]:
        return {table.score: table for table in self.scores}

    def predicted(self, score: str, block: Block, kind: str, bits: int) -> Prediction:
        """The increase of the loss if the `kind` ("weights" or "activations") of one block alone had `bits`.

        Exactly 0 for float, and for the activations of a block that reads the image alone; a negative value counts as
        0. Raises UserError for a score, a block or bits that were not analysed.
        """
        found = self.measured(score, block, kind, bits)
        return replace(found, value=0.0) if found.value < 0 else found  # one that is no number stays one

    def measured(self, score: str, block: Block, kind: str, bits: int) -> Prediction:
        """`predicted` as it was found, also below 0."""
        if bits == FLOAT_BITS or (kind == ACTIVATIONS and block.num_activations == 0):
            return NOTHING
        rows = self.table(score).of(kind)
        if block.name not in rows:
            if kind == ACTIVATIONS:
                raise UserError(
                    f"activations=mixed needs the sensitivity to activations, which block {block.name!r} lacks: "
                    "run the analysis with analysis.activations=true"
                )
            others = self._others(score)
            raise UserError(
                f"block {block.name!r} has no {score}: give score={others}, or run an analysis that finds it"
            )
        if bits not in rows[block.name]:
            setting = "candidates" if kind == WEIGHTS else "activation_candidates"
            raise UserError(
                f"block {block.name!r} has no {score} of its {kind} for {bits} bits: "
                f"give {setting}={sorted(rows[block.name])}, which were analysed"
            )
        return rows[block.name][bits]

    def rank(self, score: str, block: Block) -> float:
        """S_i by a score, see `ScoreTable`; a negative value counts as 0. Raises UserError as `predicted` does."""
        table = self.table(score)
        if block.name in table.ranks:
            return max(table.ranks[block.name].value, 0.0)
        fewest = min(table.weights.get(block.name, ()), default=FLOAT_BITS)
        return self.predicted(score, block, WEIGHTS, fewest).value / block.num_weights

    def _others(self, score: str) -> str:
        """What can be given instead of a score, in the order of `SCORES`."""
        found = {table.score for table in self.scores} - {score}
        return " or ".join([*(name for name in SCORES if name in found), *sorted(found - SCORES.keys())])
