"""The table of networks that nothing was trained for: calibration and reconstruction, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from hawq.records import FLOAT_BITS
from hawq.report.papers import PaperRow, PaperTable
from hawq.report.results import Recorded, record_of
from hawq.report.tables import markdown
from hawq.report.wording import signed

_FLOAT = str(FLOAT_BITS)
_COLUMNS = ("network", "bits", "w-bits", "a-bits", "accuracy %", "− float", "W-Comp", "size", "minutes")


def untrained_table(tables: Mapping[str, PaperTable], results: Sequence[Recorded]) -> str:
    """One line for each row of these tables that was run, below its float network.

    The difference to float is on the same images, with its 95 % interval; of several seeds it is their mean, with the
    means of their limits. Minutes are the whole run's, analysis included.

    Args:
        tables: name → rows, where each network begins with a row of 32 bits that carries its name.
        results: the records, with the rows that they fill.
    """
    lines: list[tuple[str, ...]] = []
    for name, table in tables.items():
        network = ""
        for row in table.rows:
            network = row.method if row.weights == _FLOAT else network
            recorded = record_of(f"{name}/{row.id}", results)
            if recorded is not None:
                lines.append(_line(network, row, recorded, f"{name}/{row.id}"))
    return markdown(_COLUMNS, _without_repetition(lines))


def untrained_summary(
    name: str, table: PaperTable, results: Sequence[Recorded], networks: Sequence[str], plans: Mapping[str, str]
) -> str:
    """The README's table: one line for each of a few plans, accuracy and size of each network beside each other.

    Args:
        name, table: of rows NETWORK and NETWORK-PLAN.
        results: the records, with the rows that they fill.
        networks: ids of float networks in it.
        plans: what a line is called → PLAN; "" is the float network.

    Raises:
        ValueError: a row that the table does not have, or that was not recorded.
    """
    columns = ["weights", *(f"{table.row(network).method} {what}" for network in networks for what in ("%", "size"))]
    lines = []
    for label, plan in plans.items():
        line = [label]
        for network in networks:
            place = f"{name}/{table.row(f'{network}-{plan}' if plan else network).id}"
            recorded = record_of(place, results)
            if recorded is None:
                raise ValueError(f"no record fills {place}")
            cells = recorded.cells_for(place)
            line += [cells["accuracy %"], cells["size"]]
        lines.append(tuple(line))
    return markdown(columns, lines)


def _line(network: str, row: PaperRow, recorded: Recorded, place: str) -> tuple[str, ...]:
    cells = recorded.cells_for(place)
    if row.weights == _FLOAT:
        return (network, "float", _FLOAT, _FLOAT, cells["accuracy %"], "", cells["W-Comp"], cells["size"], "")
    method = next(method for method, filled in recorded.fills.items() if filled == place)
    found = [one.result.difference for run in recorded.runs for one in run.rows if one.result.method == method]
    gaps = [gap for gap in found if gap is not None]
    shown = ""
    if gaps:
        low, high = (signed(mean(limits)) for limits in ([gap.low for gap in gaps], [gap.high for gap in gaps]))
        shown = f"{signed(mean(gap.value for gap in gaps))} ({low} to {high})"
    took = 60 * mean(run.hours for run in recorded.runs)
    minutes = f"{took:.0f}" if took >= 1 else f"{took:.1f}"
    given = (row.method, row.weights, row.activations, cells["accuracy %"], shown, cells["W-Comp"], cells["size"])
    return (network, *given, minutes)


def _without_repetition(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The lines with the name of a network in its first one alone."""
    before = ["", *(line[0] for line in lines)]
    return [("" if line[0] == name else line[0], *line[1:]) for line, name in zip(lines, before, strict=False)]
