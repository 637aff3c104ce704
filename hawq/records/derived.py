"""The scores that follow from an analysis without further measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hawq.records.scores import ByBits, Prediction, ScoreTable

if TYPE_CHECKING:
    from hawq.records.sensitivity import BlockSensitivity, Estimate

MEASURED = ("eigenvalue", "trace", "proxy")  # what an analysis may find of a block's curvature


def derived_tables(rows: Sequence[BlockSensitivity]) -> tuple[ScoreTable, ...]:
    """Ω of HAWQ and HAWQ-V2 for each curvature that was found, with Ω^a of the activations, and the plain error."""
    tables = [_curvature_table(rows, name) for name in MEASURED if any(getattr(row, name) for row in rows)]
    return (*tables, _plain_table(rows))


def _curvature_table(rows: Sequence[BlockSensitivity], name: str) -> ScoreTable:
    """λ_i · ‖ΔW_i‖² or Tr(H_i)/n_i · ‖ΔW_i‖², and Tr(H_a)/(elements of a) · ‖Δa‖² (HAWQ-V2, §3.5)."""
    weights, activations, ranks = {}, {}, {}
    for row in rows:
        found: Estimate | None = getattr(row, name)
        block = row.block
        if found is not None:
            ranks[block.name] = Prediction(found.value / block.num_weights, found.error / block.num_weights)
            weights[block.name] = _scaled(found, block.num_weights if name == "trace" else 1, row.weight_errors)
        if row.activation_trace is not None and row.activation_errors is not None and block.num_activations:
            activations[block.name] = _scaled(row.activation_trace, block.num_activations, row.activation_errors)
    return ScoreTable(name, weights, activations, ranks)


def _scaled(curvature: Estimate, size: int, errors: dict[int, float]) -> ByBits:
    """Curvature / size · error, with the error of the curvature, at all bits."""
    value, spread = curvature.value / size, curvature.error / size
    return {bits: Prediction(value * error, spread * error) for bits, error in errors.items()}


def _plain_table(rows: Sequence[BlockSensitivity]) -> ScoreTable:
    """‖ΔW_i‖² and ‖Δa‖², as for a curvature of 1."""
    weights = {row.block.name: _exact(row.weight_errors) for row in rows}
    activations = {row.block.name: _exact(row.activation_errors) for row in rows if row.activation_errors is not None}
    ranks = {row.block.name: Prediction(1 / row.block.num_weights) for row in rows}
    return ScoreTable("error", weights, activations, ranks)


def _exact(errors: dict[int, float]) -> ByBits:
    return {bits: Prediction(error) for bits, error in errors.items()}
