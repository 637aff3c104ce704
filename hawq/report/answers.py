"""What a reader asks first, answered in sentences from the stored figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hawq.records import BitPlan, RunReport
from hawq.report.blocks_view import why_most_bits
from hawq.report.charts import with_override
from hawq.report.intervals import wilson
from hawq.report.run_folder import RunFolder
from hawq.report.tables import size_label
from hawq.report.wording import number, percent, plural, signed


@dataclass(frozen=True)
class Answer:
    """A question with its answer; `command` can be copied, `points` are (mark, sentence) pairs: good, open, bad."""

    question: str
    text: str = ""
    command: str = ""
    points: tuple[tuple[str, str], ...] = ()
    file: str = ""


def headline(run: RunFolder) -> str:
    """One sentence on what the run found."""
    if run.report and len(run.report.rows) > 1:
        first, last = run.report.rows[0], run.report.rows[-1]
        smaller = f"{size_label(last.size_bytes)}, {first.size_bytes / last.size_bytes:.1f} times smaller"
        return f"{smaller}: {percent(first.accuracy)} → {percent(last.accuracy)}, {verdict(run.report)}"
    if run.plan:
        cost = run.plan.cost
        size = size_label(cost.packed_bytes if cost.packed_bytes is not None else cost.weight_bytes)
        return f"A plan of {size}, {cost.w_comp:.1f} times fewer weight bits; nothing is trained or measured yet"
    if run.sensitivity:
        return f"{plural(len(run.sensitivity.rows), 'block')} analysed; no bits are chosen yet"
    if run.report:
        return f"The float network: {percent(run.report.rows[0].accuracy)}"
    return "Nothing is measured yet"


def verdict(report: RunReport) -> str:
    """How the accuracy of the plan's network compares with that of the float network, in a few words."""
    row = report.rows[-1]
    if row.difference is None:
        return f"{signed(row.accuracy - report.rows[0].accuracy)} points"
    if row.difference.is_within_error:
        return "within sampling error"
    return f"{signed(row.difference.value)} points, more than sampling error"


def answers(run: RunFolder, front: dict[str, Any] | None) -> list[Answer]:
    """The four questions that a report should settle by itself."""
    found = []
    if run.plan and run.sensitivity:
        text = why_most_bits(run, run.plan)
        found.append(Answer("Which block got the most bits, and why?", text, file="plan.json"))
    if front:
        found += _smaller(front)
    if run.report and len(run.report.rows) > 1:
        command = with_override(run.report.command, "seed", "0,1,2").replace("train.py", "train.py -m", 1)
        found.append(
            Answer("Can I trust the accuracy?", points=trust(run, run.report), command=command, file="report.json")
        )
    elif run.plan:
        command = with_override(run.command, "stages", "[analysis,allocation,finetune,export,report]")
        if "allocation.sensitivity=" not in run.command:
            text = "Train, pack and measure the plan; what is done already is not done again."
            found.append(Answer("What is its accuracy?", text, command))
    return found


def _smaller(front: dict[str, Any]) -> list[Answer]:
    here, place = front["here"], front["smaller"]
    question = "What would the next smaller plan cost?"
    if place is None:
        return [
            Answer(question, "There is none: no choice of the allowed bit-widths is smaller.", file="frontier.json")
        ]
    point = front["points"][place]
    saved = 1 - point["bytes"] / here["bytes"]
    text = f"{front['what']} of at most {point['size']} instead of {here['size']}, {100 * saved:.1f} % less"
    if here["objective"] and point["objective"] is not None:
        more = point["objective"] / here["objective"] - 1
        text += (
            f"; the predicted increase of the loss, Σ over the blocks, goes from {number(here['objective'])} to "
            f"{number(point['objective'])} ({signed(100 * more, 0)} %)"
        )
        text += "" if front["is_loss"] else "; this score compares plans and is not itself a loss"
    text += ". What that means in accuracy is known once it is trained. This makes it:"
    return [Answer(question, text, point["command"], file="frontier.json")]


def trust(run: RunFolder, report: RunReport) -> tuple[tuple[str, str], ...]:
    """What speaks for the accuracy, and what does not: (good, open or bad; sentence)."""
    row, found = report.rows[-1], []
    images = row.num_images
    if images:
        low, high = wilson(row.accuracy, images)
        text = (
            f"Measured from the packed file itself, on {images:,} test images: 95 % interval {low:.2f} to {high:.2f} %."
        )
        found.append(("good" if high - low < 3 else "open", text))
    else:
        found.append(("open", "This run was made by a version that did not store how many images were tested."))
    if row.difference:
        d = row.difference
        same = "zero is inside" if d.is_within_error else "zero is outside"
        text = (
            f"On the same images it is {signed(d.value)} points from the float network, 95 % interval {signed(d.low)} "
            f"to {signed(d.high)}: {same}."
        )
        found.append(("good" if d.high >= 0 else "bad", text))
    if row.agreement is not None:
        text = f"Both put {percent(row.agreement)} of these images into the same class, right or wrong"
        found.append(("open", f"{text}: changes that cancel out in the accuracy count here."))
    found += _baseline(report)
    found.append(_selection(report))
    found += _plan_holds(run.plan)
    text = f"One seed ({report.config.get('seed')}): another one gives another network. The command below runs three."
    found.append(("open", text))
    return tuple(found)


def _baseline(report: RunReport) -> list[tuple[str, str]]:
    """The plan against uniform bits, with the sizes, because these differ."""
    if report.over_baseline is None or len(report.rows) < 3:
        return []
    d, base, row = report.over_baseline, report.rows[-2], report.rows[-1]
    share = 100 * (1 - base.size_bytes / row.size_bytes)
    size = "of the same size" if abs(share) < 1 else f"{abs(share):.0f} % {'smaller' if share > 0 else 'larger'}"
    shown = "the images do not show which is better" if d.is_within_error else "more than sampling error"
    interval = f"95 % interval {signed(d.low)} to {signed(d.high)}"
    text = f"{signed(d.value)} points from {base.method} ({size}), {interval}: {shown}."
    return [("bad" if d.high < 0 else "good" if d.low > 0 else "open", text)]


def _selection(report: RunReport) -> tuple[str, str]:
    """Whether test images chose the network."""
    chosen = [name for name in ("finetune", "float_network") if report.config.get(name, {}).get("keep") == "best"]
    if chosen:
        text = "The best network of the curve was kept, chosen on test images: its accuracy is somewhat flattered"
        return "bad", f"{text} ({', '.join(chosen)}.keep=best)."
    return "good", "No network was chosen by its accuracy on the test images: the last one was kept."


def _plan_holds(plan: BitPlan | None) -> list[tuple[str, str]]:
    """Whether the plan is the best one by its score, and stays that within the errors of what was measured."""
    found = []
    if plan and plan.gap is not None:
        best = "proven to be the least" if not plan.gap else f"at most {100 * plan.gap:.2g} % above the least"
        found.append(("good", f"The predicted increase of the plan is {best} within its limits."))
    if plan and plan.searched:
        mark = "good" if plan.searched.others or plan.searched.judged.start is None else "open"
        found.append((mark, f"Found by measuring whole plans: {plan.searched}."))
    if plan and plan.confidence:
        sentence = str(plan.confidence)
        found.append(("open" if plan.confidence.changes else "good", sentence[0].upper() + sentence[1:] + "."))
    return found
