"""From trials of a network to the values of a plan's images: what is judged, and what happens before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hawq.distributed import world_size
from hawq.errors import UserError
from hawq.finetuning import FineTuning, TrainingData, fit
from hawq.records import Judgement, Phase, Precision
from hawq.search.objective import Measure
from hawq.search.plans import Plan
from hawq.trials import Outcomes, Trials, paired

Prepare = Callable[[nn.Module], None]


def judged(outcomes: Outcomes, judge: str) -> Tensor:
    """Values of the images (N,), less is better. Raises UserError where the judge needs labels that are not there."""
    values = {"kl": outcomes.kl, "loss": outcomes.loss, "errors": None if outcomes.hits is None else 1 - outcomes.hits}
    found = values[judge]
    if found is None:
        raise UserError(f"judge={judge} needs labels, which these images lack: give judge=kl")
    return found


def measure_with(trials: Trials, judge: str = "kl", prepare: Prepare = lambda network: None) -> Measure:
    """A function plan → values, one tensor for each batch of the trials' images.

    By a softened KL, the values are (n, 2): it, and the plain KL that no gain may raise.

    Args:
        trials: network, images and quantiser.
        judge: one of `hawq.search.settings.JUDGES`.
        prepare: changes each quantised network before it is measured, say by a few steps of training.
    """
    judged(trials.float, judge)
    softened = judge == "kl" and trials.temperature != 1

    def measure(plan: Mapping[str, Precision]) -> Iterator[Tensor]:
        network = trials.network(plan)
        prepare(network)
        for outcomes in trials.by_batch(network.eval()):
            values = judged(outcomes, judge)
            yield torch.stack((values, outcomes.plain_kl), 1) if softened else values

    return measure


@dataclass(frozen=True)
class JointSteps:
    """A few steps of quantisation-aware training of all blocks at once, the same batches for every plan.

    Args:
        data: training batches.
        steps: how many.
        settings: of the optimiser; `FineTuning()` unless given.
        seed: of the randomness inside the network.

    Raises:
        UserError: in a group of processes: a search measures in the first one alone.
    """

    data: TrainingData
    steps: int
    settings: FineTuning
    seed: int = 0

    def __post_init__(self) -> None:
        if world_size() > 1:
            raise UserError("steps of training before a plan is judged run in one process: start without torchrun")

    def __call__(self, network: nn.Module) -> None:
        """Trains a quantised network in place."""
        settings = replace(self.settings, eval_samples=None, evaluations=0, distillation=0.0, ema_decay=None)
        phases = [Phase((), (), self.steps, settings.lr, 0.0)]
        fit(network, phases, self.data, settings, seed=self.seed)


def compared(trials: Trials, found: Plan, start: Plan | None) -> Judgement:
    """The KL of a plan, and of the one that it began from, on the images of `trials`, which decided nothing.

    Args:
        trials: on these images.
        found, start: block name → bits; no `start` for a search that began from none.
    """
    after = trials.measure(found).kl
    about = f"KL to the float outputs on {len(after)} images that decided nothing"
    if start is None:
        return Judgement(about, len(after), float(after.mean()))
    before = after if start == found else trials.measure(start).kl
    gain, error = paired(before, after)
    return Judgement(about, len(after), float(after.mean()), float(before.mean()), gain, error)
