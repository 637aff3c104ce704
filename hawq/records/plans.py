"""What allocation decides: bits for each block, their cost, and the phases that fine-tuning makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.records.kinds import Amount, Bits, CodeBits, Count, Name, Number, Operations, Share, Spread


@dataclass(frozen=True)
class Precision:
    """Bit-widths of one block's weights and input activations; 32 means float."""

    weight_bits: Bits
    activation_bits: Bits


@dataclass(frozen=True)
class Cost:
    """What a plan costs in each unit (definitions in `hawq.costs`).

    `a_comp`, `bops` and `peak_activation_bytes` (bytes, one sample) are None where no forward pass was traced,
    `packed_bytes` where the packed file's overhead is unknown.
    """

    num_weights: Count
    weight_bytes: Count
    average_bits: Amount
    w_comp: Amount
    a_comp: Amount | None
    bops: Operations | None
    packed_bytes: Count | None = None
    peak_activation_bytes: Amount | None = None


@dataclass(frozen=True)
class LimitUse:
    """How much of a limit a plan uses: the target, what the plan reaches and the slack between them, in `unit`."""

    unit: Name
    target: Number
    reached: Number
    slack: Number


@dataclass(frozen=True)
class Confidence:
    """Whether the plan holds within the errors of the curvature.

    Args:
        draws: how often the plan was recomputed with each value moved by ± its error.
        changes: for each block that did not always keep its bits, "weight/activation bits" → number of draws.
        proven: whether it is shown that no curvature within the errors makes another plan better; None where that was
            not examined.
    """

    draws: Count
    changes: dict[Name, dict[Name, Count]]
    proven: bool | None = None

    def __str__(self) -> str:
        if self.proven:
            return "no score within its error changes a bit-width (proven)"
        if not self.changes:
            return f"no bit-width changes in {self.draws} draws of the score ± its error"
        parts = [
            f"{name} " + ", ".join(f"{bits} ({count}×)" for bits, count in counts.items())
            for name, counts in self.changes.items()
        ]
        return f"bit-widths in {self.draws} draws of the score ± its error: {'; '.join(parts)}; the others stay"


@dataclass(frozen=True)
class Judgement:
    """A plan and the one that it began from, both measured on the same images.

    Args:
        about: what was measured on which images, say "KL on 400 training images, softened at T = 4".
        images: how many.
        found: mean over them for the plan; less is better.
        start: the same for the plan that it began from; None where it began from none.
        gain: mean of start − found, image by image, and `error`, the standard error of that mean.
    """

    about: Name
    images: Count
    found: Number
    start: Number | None = None
    gain: Number | None = None
    error: Amount | None = None

    def __str__(self) -> str:
        if self.start is None or self.gain is None or self.error is None:
            return f"{self.found:.4g} ({self.about})"
        return f"{self.start:.4g} → {self.found:.4g}, gain {self.gain:.2g} ± {self.error:.2g} ({self.about})"


@dataclass(frozen=True)
class Searched:
    """How a plan was found by measuring whole plans.

    Args:
        method: of the search.
        evaluations: plans that were measured.
        changes: how often the plan was replaced by a better one.
        judged: on the images that decided; too favourable, since the plan was chosen on them.
        others: on images that decided nothing; None where there were none.
    """

    method: Name
    evaluations: Count
    changes: Count
    judged: Judgement
    others: Judgement | None = None

    def __str__(self) -> str:
        text = f"{self.method}, {self.evaluations} plans measured: {self.judged}"
        if self.judged.start is not None and not self.changes:
            text = f"{self.method}, {self.evaluations} plans measured: nothing to gain, the plan stays; {self.judged}"
        return f"{text}; on other images {self.others}" if self.others else text


@dataclass(frozen=True)
class BitPlan:
    """Which block gets how many bits, in network order, with its cost and how it was found.

    Args:
        precisions: block name → bits.
        method: the name in tables.
        cost: in each unit.
        objective: Σ of the increases of the loss that `weighting` predicts.
        gap: proven relative distance from the optimum; None where the method does not minimise.
        weighting: the score that decided; "none" in old files is the plain error.
        limits: how much of each limit the plan uses.
        confidence: whether the plan holds within the errors of the curvature; None where that was not examined.
        searched: how it was found by measuring plans; None where it follows from the analysis alone.
    """

    precisions: dict[Name, Precision]
    method: Name
    cost: Cost
    objective: Spread | None = None
    gap: Share | None = None
    weighting: Name = "eigenvalue"
    limits: tuple[LimitUse, ...] = ()
    confidence: Confidence | None = None
    searched: Searched | None = None

    def __str__(self) -> str:
        rows = [f"  {name:<24} {p.weight_bits:>2} / {p.activation_bits:>2}" for name, p in self.precisions.items()]
        return "\n".join([f"{self.method}: W-Comp {self.cost.w_comp:.2f} (weight / activation bits)", *rows])

    @property
    def score(self) -> str:
        """The score that decided, by its present name."""
        return "error" if self.weighting == "none" else self.weighting

    def weight_bits(self) -> dict[str, int]:
        """Block name → bit-width of its weights, in network order."""
        return {name: precision.weight_bits for name, precision in self.precisions.items()}


@dataclass(frozen=True)
class Phase:
    """One step of ordered fine-tuning.

    Args:
        enters: blocks that become quantised now.
        quantized: all blocks that are quantised during the phase.
        steps: optimiser steps.
        lr, final_lr: learning rate at the start and at the end of the phase.
        least_bits: that a block which enters has until it enters anew, where the plan gives it fewer.
    """

    enters: tuple[Name, ...]
    quantized: tuple[Name, ...]
    steps: Count
    lr: Amount
    final_lr: Amount
    least_bits: CodeBits = 1
