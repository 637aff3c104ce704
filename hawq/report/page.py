"""report.html: one self-contained page about a run, made of the files in its folder alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.files import write_whole
from hawq.records import ValidatedPlans
from hawq.report import charts
from hawq.report.answers import answers, headline, verdict
from hawq.report.blocks_view import bits_text, formula, score_of, strip
from hawq.report.intervals import wilson
from hawq.report.run_folder import RunFolder, read_run
from hawq.report.tables import result_cells, sensitivity_rows, size_label
from hawq.report.validated_plans import validated_plans_rows
from hawq.report.validated_plans import verdict as verdict_on_plans
from hawq.report.wording import count, number, percent, plural, seconds, signed

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
_ASSETS = Path(__file__).parent / "assets"


def write_page(folder: Path, command: str = "") -> Path:
    """Writes `report.html` about whatever a run folder holds by now, and returns its path.

    The page needs no network and no other file, links to the files that its numbers come from, and is the same for the
    same files.

    Args:
        folder: of the run.
        command: that made it; a `report.json` there states its own.
    """
    run = read_run(folder, command)
    return write_whole(folder / PAGE, render("report.html.j2", **_context(run)).encode())


def render(template: str, *, data: dict[str, Any], scripts: tuple[str, ...], **context: Any) -> str:
    """A page from a template in assets/.

    Args:
        template: file name.
        data: what the scripts draw, JSON-ready.
        scripts: file names in assets/, embedded in this order.
        context: what the template shows.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    embedded = [asset(name).replace("</script", "<\\/script") for name in scripts]
    page = _environment().get_template(template)
    return page.render(payload=text, data=data, scripts=embedded, style=asset("page.css"), **context)


@cache
def asset(name: str) -> str:
    """The text of a file in assets/."""
    return (_ASSETS / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "count": count, "percent": percent, "signed": signed, "seconds": seconds}
    found.filters |= {"size": size_label, "bits": bits_text}
    return found


def _context(run: RunFolder) -> dict[str, Any]:
    """Everything that the template shows, and the data of the charts."""
    blocks = strip(run) if run.sensitivity else None
    front = charts.frontier(run) if blocks else None
    data = {
        "results": charts.results(run),
        "strip": blocks,
        "frontier": front,
        "validation": charts.validation(run),
        "training": charts.training(run),
        "landscape": run.landscape,
    }
    return {
        "run": run,
        "title": title_of(run),
        "headline": headline(run),
        "facts": _facts(run),
        "answers": answers(run, front),
        "table": _table(run),
        "plans": [_validated_plans(one) for one in run.validation.plans] if run.validation else [],
        "floats": _floats(run),
        "provenance": _provenance(run),
        "result_cells": [result_cells(row) for row in run.report.rows] if run.report else [],
        "data": data,
        "scripts": ("d3.min.js", "plot.umd.min.js", "common.js", "report.js"),
    }


def _validated_plans(found: ValidatedPlans) -> dict[str, Any]:
    """How the scores rank whole plans: a table, and which score to use."""
    columns, rows = validated_plans_rows(found)
    cells = [
        [number(cell) if isinstance(cell, float) else "–" if cell is None else str(cell) for cell in row]
        for row in rows
    ]
    about = f"after {plural(found.steps, 'step')} of joint training" if found.steps else "without training"
    title = f"{len(found.outcomes)} random plans of W-Comp {found.w_comp:.4g}, {about}"
    return {"title": title, "columns": columns, "rows": cells, "verdict": verdict_on_plans(found)}


def title_of(run: RunFolder) -> str:
    """Network and data of a run, or the name of its folder."""
    model = run.config.get("model", {}).get("name")
    data = run.config.get("dataset", {}).get("_target_", "").rpartition(".")[2]
    return f"{model} on {data}" if model and data else run.path.name


def _facts(run: RunFolder) -> list[dict[str, str]]:
    """The figures of the page's head: label, value, what stands below it, file."""
    found = []
    if run.report and len(run.report.rows) > 1:
        first, last = run.report.rows[0], run.report.rows[-1]
        low, high = wilson(last.accuracy, last.num_images) if last.num_images else (None, None)
        below = f"{low:.1f} to {high:.1f} %, 95 % sure" if low is not None else "interval unknown"
        found.append({"label": "Accuracy", "value": percent(last.accuracy), "below": below, "file": "report.json"})
        text = verdict(run.report)
        if last.difference:
            text = f"{signed(last.difference.low)} to {signed(last.difference.high)}"
        change = signed(last.accuracy - first.accuracy)
        found.append({"label": "Change from float", "value": change, "below": text, "file": "report.json"})
        ratio = f"{first.size_bytes / last.size_bytes:.1f}× smaller than {size_label(first.size_bytes)}"
        found.append(
            {"label": "Packed file", "value": size_label(last.size_bytes), "below": ratio, "file": "model.safetensors"}
        )
    if run.plan:
        cost = run.plan.cost
        below = f"W-Comp {cost.w_comp:.2f}×"
        bits = f"{cost.average_bits:.2f}"
        found.append({"label": "Mean weight bits", "value": bits, "below": below, "file": "plan.json"})
        if cost.bops is not None and len(found) < 2:
            bops = {
                "label": "BOPS",
                "value": f"{cost.bops / 1e9:.3g} G",
                "below": "products, by bits",
                "file": "plan.json",
            }
            found.append(bops)
    elif run.sensitivity:
        blocks = str(len(run.sensitivity.rows))
        below = f"by {run.sensitivity.solver}, {plural(run.sensitivity.num_samples, 'sample')}"
        found.append({"label": "Blocks", "value": blocks, "below": below, "file": "sensitivity.json"})
    return found


def _table(run: RunFolder) -> dict[str, Any] | None:
    """The blocks as a table: columns and cells."""
    if run.sensitivity is None:
        return None
    columns, rows = sensitivity_rows(run.sensitivity, run.plan)
    cells = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return {"columns": columns, "rows": cells}


def _floats(run: RunFolder) -> list[tuple[str, str]]:
    """What stays float, and why."""
    found = []
    for part in run.report.float_parts if run.report else ():
        why = (
            f"a weight of {part.num_weights:,} numbers that no convolution or linear layer holds"
            if part.num_weights
            else f"{count(part.macs)} products of two activations: there is no weight to quantise"
        )
        found.append((part.name, why))
    for layer in run.deployments.get("", {}).get("layers", []):
        if layer.get("why_float"):
            found.append((f"{layer['name']} (deployed file)", layer["why_float"]))
    for name, precision in run.plan.precisions.items() if run.plan else ():
        if precision.weight_bits == 32:
            found.append((name, f"the plan ({run.plan.method if run.plan else ''}) leaves it float"))
    return found


def _provenance(run: RunFolder) -> list[tuple[str, str]]:
    """(what, value) pairs besides the command."""
    found = [("Seed", str(run.config.get("seed", "–")))]
    if run.report:
        versions = dict(run.report.versions)
        found.append(("Hardware", versions.pop("hardware", "–")))
        found.append(("Code", run.report.git_commit or "not from a repository"))
        found.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
        found.append(("Duration of the last call", seconds(run.report.seconds)))
    if run.sensitivity:
        found.append(("Score", f"{score_of(run)}: {formula(score_of(run))}"))
        found.append(("Analysis", f"{run.sensitivity.solver} on {plural(run.sensitivity.num_samples, 'sample')}"))
    return found
