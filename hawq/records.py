"""The nouns: frozen records that every stage hands to the next, and that round-trip through JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import cattrs

from hawq.errors import UserError

Record = TypeVar("Record")

FLOAT_BITS = 32
BIT_WIDTHS = tuple(range(1, 9))  # of quantised weights and activations
IMAGE_BITS = 8  # the network's input is an 8-bit image, whatever the first block's activation bits are
MEASURED = ("eigenvalue", "trace", "proxy")  # what an analysis may find of a block
WEIGHTINGS = (*MEASURED, "none")  # what weighs the weight errors


@dataclass(frozen=True)
class Block:
    """A group of layers that shares one bit-width: a residual unit, the stem, the classifier, or one layer.

    `num_weights` counts convolution and linear weights (no biases, no batch norm). `macs` and `num_activations`
    (elements entering the layers, the input image not counted) are per sample, and None until a forward was traced.
    `image_layers` are the layers that read the network's input itself.
    """

    name: str
    layers: tuple[str, ...]
    num_weights: int
    macs: int | None = None
    num_activations: int | None = None
    image_layers: tuple[str, ...] = ()
    tie_group: str | None = None
    fixed_bits: int | None = None


@dataclass(frozen=True)
class FloatPart:
    """What stays float in a quantised network: a weight outside all blocks, or products of two activations.

    `num_weights` are the elements of a weight; `macs`, per sample, are products that no layer of a block makes.
    """

    name: str
    num_weights: int = 0
    macs: int = 0

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.num_weights:,} weights)" if self.num_weights else f"{self.name} ({self.macs:,} MACs)"
        )


@dataclass(frozen=True)
class Estimate:
    """A number with its error (residual bound or standard error), and what it cost.

    `products` counts matrix-vector products (or other readings) on all samples, `seconds` everything, also work on a
    part of them; `gradient_equivalents` are those seconds over the seconds of one forward and backward of the network.
    """

    value: float
    error: float
    products: int
    converged: bool
    seconds: float | None = field(default=None, compare=False)
    gradient_equivalents: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        mark = "" if self.converged else ", not converged"
        return f"{self.value:.4g} ± {self.error:.2g} ({self.products} products{mark})"


@dataclass(frozen=True)
class BlockSensitivity:
    """One row of the analysis: what the solver found of H_ii, and ‖Q_b(W_i) − W_i‖²₂ for every candidate width b.

    `eigenvalue` is λ_i, `smallest` the other end of the spectrum, `trace` Tr(H_ii), `proxy` what stands in for λ_i when
    no curvature was measured. `activation_trace` is the mean over samples of the trace of the Hessian by the block's
    input activations (HAWQ-V2, 1911.03852, §3.5), `activation_errors` their mean ‖Q_b(a) − a‖²₂ at each width b.

    Raises UserError when there is none of eigenvalue, trace, and proxy.
    """

    block: Block
    eigenvalue: Estimate | None
    weight_errors: dict[int, float]
    trace: Estimate | None = None
    activation_trace: Estimate | None = None
    activation_errors: dict[int, float] | None = None
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
                f"block {self.block.name!r} has no {weighting}: give bits.weighting={others}, "
                f"or run an analysis that finds it"
            )
        return found

    def score_by(self, weighting: str) -> float:
        """S_i = λ_i / n_i (HAWQ, 1905.03696) or Tr(H_i) / n_i (HAWQ-V2, 1911.03852); below zero counts as flat."""
        return max(self.curvature(weighting).value, 0.0) / self.block.num_weights

    def omega(self, bits: int, weighting: str = "eigenvalue") -> float:
        """Ω_i(b) = λ_i · ‖Q_b(W_i) − W_i‖²₂ (HAWQ) or Tr(H_i)/n_i · ‖Q_b(W_i) − W_i‖²₂ (HAWQ-V2); 0 for float weights.

        With "proxy" that number takes the place of λ_i, with "none" 1: the plain error.

        Raises UserError for a width that was not analysed.
        """
        if bits == FLOAT_BITS:
            return 0.0
        curvature = max(self.curvature(weighting).value, 0.0)
        average = curvature / self.block.num_weights if weighting == "trace" else curvature
        return average * _error_at(
            bits, self.weight_errors, f"block {self.block.name!r} has no weight error", "bits.candidates"
        )

    def activation_omega(self, bits: int) -> float:
        """Ω^a_i(b) = Tr(H_a)/(elements of a) · ‖Q_b(a) − a‖²₂ (HAWQ-V2, §3.5), 0 for float or for the image alone.

        Raises UserError when activations were not analysed, or not at this width.
        """
        if bits == FLOAT_BITS or self.block.num_activations == 0:
            return 0.0
        if self.activation_trace is None or self.activation_errors is None or self.block.num_activations is None:
            raise UserError(
                f"bits.activations=mixed needs the curvature of activations, which block {self.block.name!r} lacks: "
                "run the analysis with analysis.activations=true"
            )
        average = max(self.activation_trace.value, 0.0) / self.block.num_activations
        return average * _error_at(
            bits,
            self.activation_errors,
            f"block {self.block.name!r} has no activation error",
            "bits.activation_candidates",
        )


def _error_at(bits: int, errors: dict[int, float], complaint: str, key: str) -> float:
    if bits not in errors:
        raise UserError(f"{complaint} for {bits} bits: give {key}={sorted(errors)}, which were analysed")
    return errors[bits]


@dataclass(frozen=True)
class Sensitivity:
    """The result of the analysis: one row a block, in network order, and how it was found.

    `overhead_bytes` is what the packed file holds beside the weights' codes; without it a size in bytes is that of
    the codes alone.
    """

    rows: tuple[BlockSensitivity, ...]
    solver: str
    num_samples: int
    loss: float
    overhead_bytes: int | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(row.block for row in self.rows)

    def row(self, name: str) -> BlockSensitivity:
        """The row of one block. Raises KeyError for an unknown name."""
        return {row.block.name: row for row in self.rows}[name]

    def weighting(self, asked: str = "auto") -> str:
        """What weighs the errors; "auto" is the first of eigenvalue, trace, and proxy that all blocks have."""
        known = [name for name in MEASURED if all(getattr(row, name) is not None for row in self.rows)]
        return known[0] if asked == "auto" and known else asked


@dataclass(frozen=True)
class Normalization:
    """How a network's inputs are normalised: (x − mean) / std for each channel of an RGB image in 0 … 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size becomes a network's input: its shorter side is resized to size / crop, and the middle
    size × size is cut out.
    """

    size: int
    crop: float
    interpolation: str


@dataclass(frozen=True)
class Precision:
    """Bit-widths of one block; 32 means float."""

    weight_bits: int
    activation_bits: int


@dataclass(frozen=True)
class Cost:
    """What a plan costs, in every unit (definitions in `hawq.costs`). None where no forward was traced."""

    num_weights: int
    weight_bytes: int
    average_bits: float
    w_comp: float
    a_comp: float | None
    bops: int | None
    packed_bytes: int | None = None
    peak_activation_bytes: float | None = None


@dataclass(frozen=True)
class LimitUse:
    """How far a plan uses a limit: what was asked for, what is reached, and what is left, in the limit's unit."""

    unit: str
    target: float
    reached: float
    slack: float


@dataclass(frozen=True)
class Confidence:
    """Whether the plan holds within the errors of the curvature: `draws` times each value moved by ± its error.

    `changes` holds, for each block that did not always keep its widths, "weight/activation bits" → number of draws.
    `proven` says that no curvature within the errors makes another plan better; None where that was not asked.
    """

    draws: int
    changes: dict[str, dict[str, int]]
    proven: bool | None = None

    def __str__(self) -> str:
        if self.proven:
            return "no curvature within its error changes a width (proven)"
        if not self.changes:
            return f"no width changes in {self.draws} draws of the curvature ± its error"
        parts = [
            f"{name} " + ", ".join(f"{bits} ({count}×)" for bits, count in counts.items())
            for name, counts in self.changes.items()
        ]
        return f"widths within {self.draws} draws of the curvature ± its error: {'; '.join(parts)}; the others stay"


@dataclass(frozen=True)
class BitPlan:
    """Which block gets how many bits, in network order, with its cost and how it was found.

    `objective` is Σ Ω_i under `weighting`; `gap` the proven relative distance from the optimum, None where the rule
    does not minimise.
    """

    precisions: dict[str, Precision]
    method: str
    cost: Cost
    objective: float | None = None
    gap: float | None = None
    weighting: str = "eigenvalue"
    limits: tuple[LimitUse, ...] = ()
    confidence: Confidence | None = None

    def __str__(self) -> str:
        rows = [f"  {name:<24} {p.weight_bits:>2} / {p.activation_bits:>2}" for name, p in self.precisions.items()]
        return "\n".join([f"{self.method}: W-Comp {self.cost.w_comp:.2f} (weight / activation bits)", *rows])

    def weight_bits(self) -> dict[str, int]:
        return {name: precision.weight_bits for name, precision in self.precisions.items()}


@dataclass(frozen=True)
class Phase:
    """One step of ordered fine-tuning: which blocks become quantised now, which already are, for how long."""

    enters: tuple[str, ...]
    quantized: tuple[str, ...]
    steps: int
    lr: float
    final_lr: float


@dataclass(frozen=True)
class ResultRow:
    """One line of the results table, in the papers' columns. `accuracy` is in percent, sizes are bytes on disk."""

    method: str
    weight_bits: str
    activation_bits: str
    accuracy: float
    w_comp: float
    size_bytes: int
    a_comp: float | None
    paper_size_mib: float


@dataclass(frozen=True)
class StageRecord:
    """Provenance of one stage: the key of its artifact, and what making it took (whenever it was made)."""

    stage: str
    key: str
    reused: bool
    seconds: float
    peak_memory_mib: float | None


@dataclass(frozen=True)
class RunReport:
    """Everything a run found, and what is needed to find it again."""

    rows: tuple[ResultRow, ...]
    stages: tuple[StageRecord, ...]
    plan: BitPlan
    config: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    command: str
    seconds: float
    paths: dict[str, str] = field(default_factory=dict)
    float_parts: tuple[FloatPart, ...] = ()


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(float, _finite_float)
    return converter


def _finite_float(value: Any, _: type) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def to_dict(record: Any) -> dict[str, Any]:
    """A record as JSON-ready dictionaries and lists."""
    return _jsonable(_converter().unstructure(record))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def from_dict(data: Any, kind: type[Record]) -> Record:
    """The record of type `kind` that `to_dict` wrote. Raises ValueError naming every wrong field."""
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, path=kind.__name__))
        raise ValueError(f"not a {kind.__name__}: {problems}") from error
