"""The papers' tables next to ours: `python scripts/reproduce.py table1` (or table2 … table4, v2, v3, figures).

`ablations` are our own. `--run ROW [override …]` runs exactly that row through train.py; `readme` writes the tables of
results in README.md and docs/results.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import mean
from typing import Any, NoReturn

import torch

from hawq.allocation import Manual, UniformBits
from hawq.blocks import find_blocks
from hawq.costs import paper_size_mib, plan_cost, published_bytes
from hawq.experiment.config.build import compose_parts
from hawq.experiment.config.names import REPOSITORY, section_of
from hawq.models import ModelSpec
from hawq.quantization import BIT_WIDTHS
from hawq.records import FLOAT_BITS, Block, BlockSensitivity, Cost, Estimate, Precision, Sensitivity
from hawq.report import (
    NOT_RUN,
    Ours,
    PaperRow,
    PaperTable,
    Recorded,
    comparison,
    full_results,
    read_results,
    read_table,
    record_of,
    summary_table,
)
from hawq.report.intervals import half_width
from hawq.report.untrained import untrained_summary, untrained_table
from hawq.report.wording import signed

TABLES = {path.stem: path for path in sorted((REPOSITORY / "docs" / "papers").glob("*.yaml"))}
PAGES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "results.md")
BEGIN = "<!-- {}, made by: python scripts/reproduce.py readme -->\n"
END = "<!-- end -->\n"


def main() -> None:
    """Parses the command line; prints a table, runs a row or rewrites the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "readme"])
    parser.add_argument("--run", metavar="ROW", help="run this row")
    parser.add_argument("overrides", nargs="*", help="further overrides for train.py, e.g. dataset.path=...")
    given, more = parser.parse_known_args()
    results = read_results(REPOSITORY / "docs" / "results")
    if given.table == "readme":
        for page in PAGES:
            page.write_text(with_results(page.read_text(), results))
        return
    table = read_table(TABLES[given.table])
    try:
        if given.run is None:
            print(beside_ours(given.table, results))
        else:
            become(command(table, given.run, [*given.overrides, *more]))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def become(line: Sequence[str]) -> NoReturn:
    """Runs a command in the place of this process, so that what ends the one (a timeout, say) ends the other."""
    if os.name == "nt":  # where that leaves the caller's console
        raise SystemExit(subprocess.call(line))
    sys.stdout.flush()
    os.execv(line[0], list(line))


def command(table: PaperTable, name: str, overrides: list[str]) -> list[str]:
    """The command line that runs a row. Raises ValueError for a row that cannot be run."""
    own = table.overrides(table.row(name))
    if own is None:
        raise ValueError(f"row {name!r} cannot be run: this system or these bits are not implemented here")
    return [sys.executable, str(REPOSITORY / "train.py"), *own, *overrides]


def with_results(page: str, results: list[Recorded]) -> str:
    """The text of a page with each table that it has a place for made from the records."""
    tables: dict[str, Callable[[list[Recorded]], str]] = {
        "summary": summary_table,
        "results": full_results,
        "ablations": partial(beside_ours, "ablations"),
        "untrained": untrained,
        "headline": headline,
    }
    for name, make in tables.items():
        before, begin, rest = page.partition(BEGIN.format(name))
        if begin:
            page = f"{before}{begin}\n{make(results)}\n\n{END}{rest.partition(END)[2]}"
    return page


def untrained(results: list[Recorded]) -> str:
    """The table of all rows that nothing is trained for."""
    return untrained_table({name: read_table(TABLES[name]) for name in ("imagenet", "cifar10")}, results)


def headline(results: list[Recorded]) -> str:
    """What a few plans without training keep on two networks, for the README."""
    plans = {
        "float": "",
        "8 bits": "w8a8-descent",
        "4 bits (first and last layer 8), rounded to nearest": "w4a8",
        "4 bits (first and last layer 8)": "w4a8-descent",
        "mixed, 4.0 bits on average": "mixed-4-a8-kl-descent",
        "3 bits (first and last layer 8)": "w3a8-descent",
        "mixed, 3.0 bits on average": "mixed-3-a8-kl-descent",
    }
    return untrained_summary("imagenet", read_table(TABLES["imagenet"]), results, ("squeezenet", "lite0"), plans)


def beside_ours(name: str, results: list[Recorded]) -> str:
    """A table with each row's figures next to ours."""
    table = read_table(TABLES[name])
    return comparison(table, {row.id: ours(name, table, row, results) for row in table.rows})


def ours(name: str, table: PaperTable, row: PaperRow, results: list[Recorded]) -> Ours:
    """Costs of a row, computed from a new network, and the accuracy that was recorded for it."""
    place = f"{name}/{row.id}"
    recorded = record_of(place, results)
    found = recorded.cells_for(place) if recorded else {}
    known = Ours(accuracy=found.get("accuracy %", NOT_RUN), difference=difference(name, row, results))
    overrides = table.overrides(row)
    if overrides is None and row.layer_bits is None:
        return known
    parts = planned_parts(tuple(filter(says_plan, overrides or [f"experiment={table.experiment}"])))
    blocks, float_bytes = measure(parts["model"], table.num_classes)
    if row.layer_bits is not None:
        bit_widths = [int(bits) for bits in f"8{row.layer_bits}8"]
    elif not parts["options"].stages:
        bit_widths = [FLOAT_BITS] * len(blocks)
    elif isinstance(parts["bits"], (Manual, UniformBits)):
        return with_cost(known, parts["bits"].allocate(without_curvature(blocks)).cost, float_bytes)
    else:  # needs an analysis
        target = f"{parts['bits'].target:g}"
        wanted = f"≤ {target} on average" if parts["bits"].unit == "average_bits" else f"≥ {target}"
        reached = found["W-Comp"].removesuffix("×") if found else f"our bits, {wanted}"
        return replace(known, limit=reached)
    precisions = {block.name: Precision(bits, bits) for block, bits in zip(blocks, bit_widths, strict=True)}
    return with_cost(known, plan_cost(blocks, precisions), float_bytes)


def says_plan(override: str) -> bool:
    """Whether an override may change what a plan costs: how the network is quantised and trained does not."""
    return section_of(override) not in ("reconstruction", "tuning", "finetune")


@cache
def planned_parts(overrides: tuple[str, ...]) -> dict[str, Any]:
    """What these overrides build; rows share them, and composing a config takes a third of a second."""
    return compose_parts([*overrides, "dataset.path=none"])


def with_cost(known: Ours, cost: Cost, float_bytes: int) -> Ours:
    """Our figures with those of a plan of this cost; `float_bytes` are those of the float checkpoint."""
    return replace(known, cost=cost, size_mib=paper_size_mib(float_bytes, cost.w_comp))


def difference(name: str, row: PaperRow, results: list[Recorded]) -> str:
    """Mean difference of a row to the one that it is compared with, over the seeds that both were recorded with."""
    if row.against is None:
        return "–"
    places = [f"{name}/{key}" for key in (row.id, row.against)]
    records = [record_of(place, results) for place in places]
    mine, other = (one.accuracies(place) if one else {} for one, place in zip(records, places, strict=True))
    values = [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]
    if len(values) < 2:
        return "–"
    return f"{signed(mean(values))} ± {half_width(values):.2f} to {row.against}"


def without_curvature(blocks: Sequence[Block]) -> Sensitivity:
    """A sensitivity for allocators that need only the blocks: all curvatures and errors are 0."""
    nothing, errors = Estimate(0.0, 0.0, 0, True), dict.fromkeys(BIT_WIDTHS, 0.0)
    return Sensitivity(tuple(BlockSensitivity(block, nothing, errors) for block in blocks), "none", 0, 0.0)


@cache
def measure(source: ModelSpec, num_classes: int) -> tuple[tuple[Block, ...], int]:
    """Blocks of a network, built without memory and traced at its own input size; and bytes of its float checkpoint."""
    with torch.device("meta"):
        builder = source.source if source.source == "torchvision" else None
        model = replace(source, checkpoint=None, source=builder).untrained(num_classes)
        side = model.preprocessing.size
        blocks = find_blocks(model.network, torch.empty(1, 3, side, side), granularity=source.blocks)
    return blocks, published_bytes(model.network.to_empty(device="cpu").state_dict())


if __name__ == "__main__":
    main()
