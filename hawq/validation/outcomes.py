"""What whole plans truly do to a network, on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.progress import SILENT, Progress
from hawq.records import FLOAT_BITS, PlanOutcome, Precision, from_dict, to_dict
from hawq.resuming import Checkpoint
from hawq.trials import Outcomes, Trials, paired
from hawq.validation.plans import Plan


def measure_plans(
    trials: Trials,
    plans: Sequence[Plan],
    checkpoint: Checkpoint | None = None,
    progress: Progress = SILENT,
    title: str = "plans",
) -> list[PlanOutcome]:
    """What each plan does without training, stored after each one and resumed from there.

    Raises UserError where outputs are not finite, or images have no labels.
    """
    kept = checkpoint.load() if checkpoint else None
    found = [from_dict(row, PlanOutcome) for row in kept["outcomes"]] if kept else []
    with progress.task(title, len(plans), done=len(found)) as task:
        for plan in plans[len(found) :]:
            network = trials.network(plan)
            found.append(outcome_of(trials, plan, network))
            if checkpoint:
                checkpoint.save({"outcomes": [to_dict(row) for row in found]})
            task.advance(1, f"KL {found[-1].kl:.3g}")
    return found


def outcome_of(trials: Trials, plan: Plan, network: nn.Module) -> PlanOutcome:
    """What a network quantised by a plan does on the images of the trials, paired with the float network."""
    found, before = trials.outcomes(network), trials.float
    loss, hits = _known(found)
    float_loss, float_hits = _known(before)
    return PlanOutcome(
        {name: _label(precision) for name, precision in plan.items()},
        plan_cost(trials.blocks, plan).w_comp,
        *paired(found.kl, before.kl),
        *paired(loss, float_loss),
        *paired(100 * float_hits, 100 * hits),
    )


def _known(outcomes: Outcomes) -> tuple[Tensor, Tensor]:
    if outcomes.loss is None or outcomes.hits is None:
        raise UserError("plans are validated on images with labels: give (inputs, labels)")
    return outcomes.loss, outcomes.hits


def _label(precision: Precision) -> str:
    weights, activations = precision.weight_bits, precision.activation_bits
    return str(weights) if activations == FLOAT_BITS else f"{weights}/{activations}"
