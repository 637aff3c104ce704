"""What the analysis finds: curvature and quantisation errors of each block."""

from __future__ import annotations

from dataclasses import dataclass, field

from hawq.errors import UserError
from hawq.records.blocks import Block
from hawq.records.kinds import FLOAT_BITS, Amount, BitsKey, Count, Name, Number

MEASURED = ("eigenvalue", "trace", "proxy")  # what an analysis may find of a block
WEIGHTINGS = (*MEASURED, "none")  # what weighs the weight errors


@dataclass(frozen=True)
class Estimate:
    """A number with its error, and what it cost.

    Args:
        value: the number.
        error: residual bound or standard error, in the unit of the value.
        products: matrix-vector products (or other readings) on all samples.
        converged: whether the solver reached its tolerance.
        seconds: all time spent, including work on a part of the samples.
        gradient_equivalents: those seconds over the seconds of one forward and backward pass of the network.
    """

    value: Number
    error: Amount
    products: Count
    converged: bool
    seconds: Amount | None = field(default=None, compare=False)
    gradient_equivalents: Amount | None = field(default=None, compare=False)

    def __str__(self) -> str:
        mark = "" if self.converged else ", not converged"
        return f"{self.value:.4g} ± {self.error:.2g} ({self.products} products{mark})"


@dataclass(frozen=True)
class BlockSensitivity:
    """One row of the analysis: what was found of H_ii, and ‖Q_b(W_i) − W_i‖²₂ for each candidate bit-width b.

    Args:
        block: which one.
        eigenvalue: λ_i, the largest algebraic eigenvalue of H_ii.
        weight_errors: bits → ‖Q_b(W_i) − W_i‖²₂.
        trace: Tr(H_ii).
        activation_trace: mean over samples of the trace of the Hessian with respect to the block's input activations
            (HAWQ-V2, 1911.03852, §3.5).
        activation_errors: bits → mean over samples of ‖Q_b(a) − a‖²₂ of these activations.
        smallest: the other end of the spectrum.
        proxy: what stands in for λ_i when no curvature was measured.

    Raises:
        UserError: none of eigenvalue, trace and proxy is given.
    """

    block: Block
    eigenvalue: Estimate | None
    weight_errors: dict[BitsKey, Amount]
    trace: Estimate | None = None
    activation_trace: Estimate | None = None
    activation_errors: dict[BitsKey, Amount] | None = None
    smallest: Estimate | None = None
    proxy: Estimate | None = None

    def __post_init__(self) -> None:
        if self.eigenvalue is None and self.trace is None and self.proxy is None:
            raise UserError(f"block {self.block.name!r} has neither eigenvalue nor trace nor proxy: give one of them")

    def curvature(self, weighting: str = "eigenvalue") -> Estimate:
        """λ_i, Tr(H_i), the proxy, or 1 for "none". Raises UserError when the analysis has not found it."""
        if weighting == "none":
            return Estimate(1.0, 0.0, 0, True)
        known = {"eigenvalue": self.eigenvalue, "trace": self.trace, "proxy": self.proxy}
        found = known[weighting]
        if found is None:
            others = " or ".join(name for name, estimate in known.items() if estimate is not None)
            raise UserError(
                f"block {self.block.name!r} has no {weighting}: give weighting={others}, "
                f"or run an analysis that finds it"
            )
        return found

    def score_by(self, weighting: str) -> float:
        """S_i = λ_i / n_i (HAWQ, 1905.03696) or Tr(H_i) / n_i (HAWQ-V2, 1911.03852); a negative value counts as 0.

        Raises UserError when the analysis has not found this quantity.
        """
        return max(self.curvature(weighting).value, 0.0) / self.block.num_weights

    def omega(self, bits: int, weighting: str = "eigenvalue") -> float:
        """Ω_i(b) = λ_i · ‖Q_b(W_i) − W_i‖²₂ (HAWQ) or Tr(H_i)/n_i · ‖Q_b(W_i) − W_i‖²₂ (HAWQ-V2); 0 for float weights.

        With "proxy" that number takes the place of λ_i, with "none" 1: the plain error. A negative curvature counts as
        0. Raises UserError for a bit-width that was not analysed.
        """
        if bits == FLOAT_BITS:
            return 0.0
        curvature = max(self.curvature(weighting).value, 0.0)
        average = curvature / self.block.num_weights if weighting == "trace" else curvature
        return average * _error_at(
            bits, self.weight_errors, f"block {self.block.name!r} has no weight error", "candidates"
        )

    def activation_omega(self, bits: int) -> float:
        """Ω^a_i(b) = Tr(H_a)/(elements of a) · ‖Q_b(a) − a‖²₂ (HAWQ-V2, §3.5), 0 for float or for the image alone.

        Raises UserError when activations were not analysed, or not at this bit-width.
        """
        error = self.activation_error(bits)
        if bits == FLOAT_BITS or self.block.num_activations == 0:
            return 0.0
        if self.activation_trace is None or self.block.num_activations is None:
            raise self._without_activations()
        return max(self.activation_trace.value, 0.0) / self.block.num_activations * error

    def activation_error(self, bits: int) -> float:
        """‖Q_b(a) − a‖²₂, mean over samples; 0 for float or for the image alone. Raises UserError as above."""
        if bits == FLOAT_BITS or self.block.num_activations == 0:
            return 0.0
        if self.activation_errors is None:
            raise self._without_activations()
        return _error_at(
            bits,
            self.activation_errors,
            f"block {self.block.name!r} has no activation error",
            "activation_candidates",
        )

    def _without_activations(self) -> UserError:
        return UserError(
            f"activations=mixed needs the curvature of activations, which block {self.block.name!r} lacks: "
            "run the analysis with analysis.activations=true"
        )


def _error_at(bits: int, errors: dict[int, float], complaint: str, field_name: str) -> float:
    if bits not in errors:
        raise UserError(f"{complaint} for {bits} bits: give {field_name}={sorted(errors)}, which were analysed")
    return errors[bits]


@dataclass(frozen=True)
class Sensitivity:
    """The result of the analysis: one row per block, in network order, and how it was found.

    Args:
        rows: one per block.
        solver: name of what measured the curvature.
        num_samples: samples that the loss is averaged over.
        loss: its mean over them.
        overhead_bytes: what the packed file holds besides the weights' codes; if None, a size in bytes is that of the
            codes alone.
    """

    rows: tuple[BlockSensitivity, ...]
    solver: Name
    num_samples: Count
    loss: Number
    overhead_bytes: Count | None = None

    def check_entries(self) -> None:
        """What a file must hold besides entries of the right kind. Raises UserError for blocks of the same name."""
        names = [block.name for block in self.blocks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"the blocks {', '.join(twice)} are listed more than once: give one row per block")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in network order."""
        return tuple(row.block for row in self.rows)

    def row(self, name: str) -> BlockSensitivity:
        """The row of one block. Raises KeyError for an unknown name."""
        return {row.block.name: row for row in self.rows}[name]

    def weighting(self, asked: str = "auto") -> str:
        """What weighs the errors; "auto" is the first of eigenvalue, trace and proxy that all blocks have."""
        known = [name for name in MEASURED if all(getattr(row, name) is not None for row in self.rows)]
        return known[0] if asked == "auto" and known else asked
