"""The verbs: a plan refined, or found, by measuring whole plans on images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hawq.allocation.allocator import Measuring, make_plan
from hawq.allocation.integer_program import IntegerProgram
from hawq.allocation.problem import Problem
from hawq.blocks import trace_blocks
from hawq.errors import UserError
from hawq.quantization import LSQ, Quantizer, input_batches
from hawq.records import BitPlan, Block, Judgement, Searched, Sensitivity
from hawq.search.layer_facts import LayerFacts, layer_facts
from hawq.search.measuring import Prepare, compared, measure_with
from hawq.search.objective import Objective
from hawq.search.plans import Plans
from hawq.search.refining import STANDARD_ERRORS, Found, refined
from hawq.search.settings import JUDGES
from hawq.trials import Images, Trials, paired

Batches = Sequence[Images | Tensor] | Tensor

_LOG = logging.getLogger(__name__)


class Searcher(Measuring, Protocol):
    """An allocator that finds a plan by measuring plans."""

    method: str

    def search(self, objective: Objective, plans: Plans, facts: Sequence[LayerFacts]) -> Found:
        """The best plan that it comes to within the evaluations of the objective; `facts` are those of each group."""
        ...

    def problem(self, blocks: Sequence[Block], overhead_bytes: int | None) -> Problem:
        """The options of these blocks and the limits on them."""
        ...


@dataclass(frozen=True)
class Judging:
    """How a plan is judged.

    Args:
        judge: "kl" to the float outputs, "loss" or "errors" (cross-entropy, wrong answers); the last two need labels.
        temperature: T of the softened KL, T² · KL(softmax(z/T) ‖ softmax(z'/T)).
        prepare: changes each quantised network before it is measured, say `JointSteps`.
        about: what is measured on which images, for records; made of the other two unless given.
        standard_errors: that the gain of a swap must exceed.
    """

    judge: str = "kl"
    temperature: float = 4.0
    prepare: Prepare = lambda network: None
    about: str | None = None
    standard_errors: float = STANDARD_ERRORS

    def words(self, images: int) -> str:
        """`about`, or the same made of the other fields."""
        soft = f", softened at T = {self.temperature:g}" if self.judge == "kl" and self.temperature != 1 else ""
        return self.about or f"{JUDGES[self.judge]} on {images} images{soft}"


def refine(
    model: nn.Module,
    sensitivity: Sensitivity,
    images: Batches,
    calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    allocator: IntegerProgram | None = None,
    *,
    temperature: float = 4.0,
    **options: Any,
) -> BitPlan:
    """The optimum of an integer program, refined: bits swapped wherever the measured KL of the whole plan gains.

    A swap is taken only where its gain, paired image by image, exceeds two standard errors. The images need no labels,
    and are best ones that the network has not been trained on. The KL is softened: at T = 1 a few images make up most
    of it, and images that the network has memorised tell plans apart wrongly. The plain KL must not rise, though.

    Args:
        model: the float network; left unchanged.
        sensitivity: from `analyze`.
        images: batches of inputs (N, ...), or of (inputs, labels), that plans are judged on; a tensor is one batch.
        calibration: see `quantize`.
        allocator: `IntegerProgram(refine=200)` unless given.
        temperature: T of the softened KL.
        options: `start`, `others`, `quantizer`, `checkpoint`, `progress`; see `search_plan`.

    Returns:
        A plan that says in `searched` what was gained, on how many images, by how many evaluations;
        `str(plan.searched)` is a sentence.

    Raises:
        ValueError: as `search_plan` does.
    """
    allocator = allocator or IntegerProgram(refine=200)
    if not allocator.evaluations:
        allocator = replace(allocator, refine=200)
    judging = Judging(temperature=temperature)
    return search_plan(model, sensitivity, images, calibration, allocator, judging=judging, **options)


def search_plan(
    model: nn.Module,
    sensitivity: Sensitivity,
    images: Batches,
    calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    allocator: Searcher | IntegerProgram,
    *,
    judging: Judging | None = None,
    start: BitPlan | None = None,
    others: Batches = (),
    quantizer: Quantizer | None = None,
    **keeping: Any,
) -> BitPlan:
    """The plan that a measuring allocator finds: an integer program that refines, HAQ, Optuna or random search.

    Args:
        model, sensitivity, images, calibration: see `refine`.
        allocator: measures at most `allocator.evaluations` plans.
        judging: by the softened KL at T = 4 unless given.
        start: where a refinement begins, instead of at the optimum; a plan within the limits.
        others: batches that decide nothing, on which the result is measured again by plain KL.
        quantizer: LSQ unless given.
        keeping: `checkpoint`, `save_every_seconds` and `progress`; see `Objective`.

    Raises:
        ValueError: the limits cannot be met, `start` is over them or has bits that are not candidates, or the images
            cannot be used.
    """
    device, judging, quantizer = next(model.parameters()).device, judging or Judging(), quantizer or LSQ()
    inputs = input_batches(calibration, device)
    if any(block.macs is None for block in sensitivity.blocks):
        sensitivity = _traced(model, sensitivity, inputs[0][:1])
    own = getattr(allocator, "own_quantizer", lambda quantizer: quantizer)(quantizer)
    batches, blocks = pairs_of(images, device), sensitivity.blocks
    trials = Trials(model, blocks, batches, inputs, own, temperature=judging.temperature)
    plans = Plans(allocator.problem(blocks, sensitivity.overhead_bytes))
    begun = _begin(plans, sensitivity, allocator, start)
    measure, title = measure_with(trials, judging.judge, judging.prepare), f"measuring plans ({_method(allocator)})"
    with Objective(measure, trials.batch_sizes, allocator.evaluations, title=title, **keeping) as objective:
        if isinstance(allocator, IntegerProgram) and begun:
            scores = option_scores(plans, sensitivity, allocator, begun.score)
            found = refined(objective, plans, begun.precisions, scores, judging.standard_errors)
        else:
            found = allocator.search(objective, plans, layer_facts(model, plans.problem, inputs[0][:1]))  # type: ignore
        judged = _judgement(objective, found, begun, judging.words(objective.num_images))
    more = None
    if len(others):
        unseen = Trials(model, blocks, pairs_of(others, device), inputs, quantizer)
        more = compared(unseen, found.plan, begun.precisions if begun else None)
        _warn_of_a_loss(more)
    record = Searched(_method(allocator), objective.evaluations, found.changes, judged, more)
    return _finished(plans, sensitivity, allocator, found, begun, record)


def _begin(
    plans: Plans, sensitivity: Sensitivity, allocator: Searcher | IntegerProgram, start: BitPlan | None
) -> BitPlan | None:
    """The plan that a refinement begins from; None for a search that begins from none."""
    if isinstance(allocator, IntegerProgram):
        return _within(plans, start or allocator.allocate(sensitivity))
    if start is not None:
        raise UserError(f"start is not used by {allocator.method}: leave it out")
    return None


def _traced(model: nn.Module, sensitivity: Sensitivity, example: Tensor) -> Sensitivity:
    """The analysis with blocks traced by one input (1, ...)."""
    blocks = {block.name: block for block in trace_blocks(model, sensitivity.blocks, example)}
    rows = tuple(replace(row, block=blocks[row.block.name]) for row in sensitivity.rows if row.block.name in blocks)
    return replace(sensitivity, rows=rows)


def option_scores(plans: Plans, sensitivity: Sensitivity, allocator: IntegerProgram, score: str) -> np.ndarray:
    """(M,): the increase that a score predicts for each option of all groups; the plain error where it predicts none.

    Raises UserError where the analysis lacks the score.
    """
    name = "error" if sensitivity.table(score).is_flat else score
    return np.array(
        [
            sum(
                sensitivity.predicted(name, block, kind, bits).value
                for block in group.blocks
                for kind, bits in allocator.bits_by_kind(option).items()
            )
            for group in plans.problem.groups
            for option in group.options
        ]
    )


def pairs_of(images: Batches, device: torch.device) -> list[Images]:
    """Batches as (inputs, labels or None) on a device."""
    batches: Sequence[Any] = [images] if isinstance(images, Tensor) else list(images)
    pairs = [(one, None) if isinstance(one, Tensor) else tuple(one) for one in batches]
    return [(inputs.to(device), None if labels is None else labels.to(device)) for inputs, labels in pairs]


def _method(allocator: Searcher | IntegerProgram) -> str:
    return "refinement" if isinstance(allocator, IntegerProgram) else allocator.method


def _within(plans: Plans, start: BitPlan) -> BitPlan:
    """The plan itself. Raises UserError where it is over a limit."""
    if not plans.allows(plans.chosen(start.precisions)):
        uses = plans.problem.uses(start.precisions)
        over = ", ".join(f"{use.reached:.6g} {use.unit}" for use in uses if use.slack < 0)
        limits = " and ".join(map(str, plans.problem.limits))
        raise UserError(f"start is over its limits ({over}, with {limits}): give a plan within them")
    return start


def _judgement(objective: Objective, found: Found, begun: BitPlan | None, about: str) -> Judgement:
    """What the search itself measured of its result and of its start."""
    after = objective.values(found.plan)
    if begun is None:
        return Judgement(about, len(after), float(after.mean()))
    before = objective.values(begun.precisions)
    gain, error = paired(before, after)
    return Judgement(about, len(after), float(after.mean()), float(before.mean()), gain, error)


def _warn_of_a_loss(others: Judgement) -> None:
    if others.gain is not None and others.error is not None and others.gain < -2 * others.error:
        _LOG.warning("the plan that was found is worse on images that decided nothing: %s", others)


def _finished(
    plans: Plans,
    sensitivity: Sensitivity,
    allocator: Searcher | IntegerProgram,
    found: Found,
    begun: BitPlan | None,
    record: Searched,
) -> BitPlan:
    """The plan as a record, with its cost, its use of the limits and how it was found."""
    limits = plans.problem.uses(found.plan)
    if begun is None or not isinstance(allocator, IntegerProgram):
        plan = make_plan(sensitivity, found.plan, _method(allocator), score=sensitivity.score_name(), limits=limits)
        return replace(plan, searched=record)
    if not found.changes:
        return replace(begun, searched=record)
    scores = option_scores(plans, sensitivity, allocator, begun.score)
    objective = float(scores[plans.chosen(found.plan)].sum())
    made = make_plan(
        sensitivity, found.plan, f"{begun.method} refined", score=begun.score, objective=objective, limits=limits
    )
    return replace(made, searched=record)
