"""How the scores are validated."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.allocation.allocator import check_activation_bits
from hawq.checks import check_range
from hawq.components import component
from hawq.records import BIT_WIDTHS, FLOAT_BITS
from hawq.records.scores import check_scores

_MOST = {"num_samples": 10**9, "batch_size": 10**6, "draws": 20_000, "save_every_seconds": 10**6}
_FEWEST_PLANS, _MOST_PLANS, _MOST_STEPS = 3, 10_000, 10**7
_PLANS = ("plans", "target", "activations", "trained_plans", "steps")  # in the keys of what is measured of them


@component(
    "validate/validation", not_in_key=("batch_size", "save_every_seconds", "solvers", "scores", "draws", *_PLANS)
)
@dataclass(frozen=True)
class Validation:
    """How the scores are validated.

    Args:
        num_samples: held-out images, drawn once by the run's seed; at most those that are there.
        batch_size: images in one forward pass.
        bit_widths: at which each block is quantised alone.
        solvers: options of conf/solver whose scores are compared; the run's own one keeps the values it was given.
        draws: of the bootstrap over blocks that the intervals come from, at most 20,000.
        save_every_seconds: how often partial results are stored, so that a killed run can be resumed.
        scores: measured ones that are compared as well, some of kl, quadratic, output_shift, learned_steps; those of
            the run are compared in any case.
        plans: random plans of one size that the scores are compared on; 0 leaves it at single blocks, else 3 or more.
        target: W-Comp that these plans have within 1 %; None for that of the run's own plan.
        activations: bit-width of all activations in these plans, 32 for float.
        trained_plans: how many of them are trained jointly as well, and compared again; 0, or 3 or more.
        steps: of this training, which otherwise goes by the settings of fine-tuning.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int
    batch_size: int
    bit_widths: tuple[int, ...]
    solvers: tuple[str, ...]
    draws: int
    save_every_seconds: float
    scores: tuple[str, ...] = ("kl", "quadratic", "output_shift")
    plans: int = 60
    target: float | None = None
    activations: int = FLOAT_BITS
    trained_plans: int = 0
    steps: int = 390

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 2), ("batch_size", 1), ("draws", 1), ("save_every_seconds", 0)):
            check_range(name, getattr(self, name), least=least, most=_MOST[name])
        for name in ("bit_widths", "solvers"):
            given = list(getattr(self, name))
            if len(set(given)) < max(len(given), 1):
                raise ValueError(f"{name}={given} is out of range: give at least one, none twice")
        if not set(self.bit_widths) <= set(BIT_WIDTHS):
            raise ValueError(f"bit_widths={list(self.bit_widths)} is out of range: give some of {list(BIT_WIDTHS)}")
        check_scores("scores", self.scores)
        for name in ("plans", "trained_plans"):
            count = getattr(self, name)
            if count and not _FEWEST_PLANS <= count <= _MOST_PLANS:
                raise ValueError(f"{name}={count} is out of range: give {_FEWEST_PLANS} to {_MOST_PLANS}, or 0")
        if self.trained_plans > self.plans:
            raise ValueError(f"trained_plans={self.trained_plans} is out of range: give at most plans={self.plans}")
        check_range("target", self.target, least=1, most=32, optional=True)
        check_activation_bits(self.activations)
        check_range("steps", self.steps, least=1, most=_MOST_STEPS)
