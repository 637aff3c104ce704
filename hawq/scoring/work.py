"""What all measured scores share: the conditions they are measured under, and the predictions found so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hawq.blocks import block_layers
from hawq.curvature import OPERATORS, Batch, BlockOperator, Loss
from hawq.distributed import broadcast
from hawq.errors import UserError
from hawq.layers import weight_of
from hawq.modes import analysis_mode
from hawq.progress import SILENT, Progress
from hawq.records import ACTIVATIONS, WEIGHTS, Block, Prediction, ScoreTable
from hawq.resuming import Checkpoint
from hawq.structures import main_output

_PARTS = 8  # of the samples, measured one after the other
Place = tuple[str, str, int]  # block, kind, bits


@dataclass(frozen=True)
class Conditions:
    """How a score is measured; nothing here changes its values.

    Args:
        checkpoint: where predictions are stored, at most every `save_every_seconds`, and resumed from.
        save_every_seconds: least time between two stored states.
        memory_limit_gib: most memory of the process; batches are cut so that it stays below.
        progress: told of every prediction.
    """

    checkpoint: Checkpoint | None = None
    save_every_seconds: float = 20.0
    memory_limit_gib: float | None = None
    progress: Progress = SILENT


class Ledger:
    """Numbers that were measured so far for each place, and the seconds they took; the same on all processes."""

    def __init__(self, conditions: Conditions) -> None:
        self._checkpoint, self._every = conditions.checkpoint, conditions.save_every_seconds
        kept = broadcast(self._checkpoint.load() if self._checkpoint else None) or {"rows": [], "seconds": 0.0}
        self.values: dict[Place, list[float]] = {
            (str(name), str(kind), int(bits)): list(values) for name, kind, bits, values in kept["rows"]
        }
        """Block, kind, bits → what was measured, as each score needs it."""
        self.further: dict[str, Any] = kept.get("further") or {}
        """What a score keeps beside these numbers, as it was stored last."""
        self._earlier, self._started = float(kept["seconds"]), time.monotonic()
        self._saved = self._started

    @property
    def seconds(self) -> float:
        """Of this process and of those that were stopped before it."""
        return self._earlier + time.monotonic() - self._started

    def save(self, further: Callable[[], dict[str, Any]] = dict) -> None:
        """Stores what was found, and what `further` gives, unless that was done just before."""
        if self._checkpoint is not None and time.monotonic() - self._saved >= self._every:
            rows = [[*place, values] for place, values in self.values.items()]
            self._checkpoint.save({"rows": rows, "seconds": self.seconds, "further": further()})
            self._saved = time.monotonic()

    def table(
        self, score: str, predicted: Mapping[Place, tuple[float, float]], gradient_seconds: float, num_samples: int
    ) -> ScoreTable:
        """Value and error of each place as one table, with their cost.

        Raises UserError for a value that is no number.
        """
        tables: dict[str, dict[str, dict[int, Prediction]]] = {WEIGHTS: {}, ACTIVATIONS: {}}
        for (name, kind, bits), (value, error) in predicted.items():
            if not math.isfinite(value):
                raise UserError(f"the score {score} of the {kind} of block {name!r} at {bits} bits is not finite")
            tables[kind].setdefault(name, {})[bits] = Prediction(value, error if math.isfinite(error) else 0.0)
        seconds = self.seconds
        return ScoreTable(
            score,
            tables[WEIGHTS],
            tables[ACTIVATIONS],
            one_factor=False,
            seconds=seconds,
            gradient_equivalents=seconds / gradient_seconds if gradient_seconds else None,
            num_samples=num_samples,
        )


def places(blocks: Sequence[Block], bit_widths: Sequence[int], *, activations: bool) -> list[Place]:
    """What is predicted: the weights of each block at each bit-width, and its activations unless it reads the image."""
    found: list[Place] = []
    for block in blocks:
        kinds = (WEIGHTS, ACTIVATIONS) if activations and block.num_activations else (WEIGHTS,)
        found += [(block.name, kind, bits) for kind in kinds for bits in bit_widths]
    return found


def block_weights(model: nn.Module, block: Block) -> list[Tensor]:
    """The distinct weight tensors W_i of a block, in the order of its layers."""
    return [weight_of(layer) for layer in block_layers(model, block)]


def block_operator(
    curvature: str,
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    memory_limit_gib: float | None,
) -> BlockOperator:
    """The matrices of all blocks, "hessian" or "ggn", in batches below the limit, or that spare memory without one.

    Raises ValueError as `BlockOperator` does.
    """
    parameters = {block.name: block_weights(model, block) for block in blocks}
    limit_bytes = None if memory_limit_gib is None else memory_limit_gib * 2**30
    operator = OPERATORS[curvature](model, parameters, batches, loss, limit_bytes)
    if limit_bytes is None:
        operator.spare_memory()
    return operator


def gradient_seconds(model: nn.Module, weights: Sequence[Tensor], inputs: Tensor, num_samples: int) -> float:
    """Seconds of one forward and backward pass over `num_samples`, timed on `inputs` (N, ...): the unit of cost."""
    with analysis_mode(model, weights):
        for _ in range(2):  # the first pass also loads kernels
            began = time.perf_counter()
            outputs = main_output(model(inputs))
            torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
    return seconds * num_samples / len(inputs)


@contextmanager
def told(conditions: Conditions, score: str, total: int, done: int) -> Iterator[Any]:
    """A task of the progress for one score."""
    with conditions.progress.task(f"score {score}", total, done=done) as task:
        yield task


def parts_of(operator: BlockOperator) -> tuple[list[list[int]], Tensor]:
    """Eighths of all samples: for each the samples that this process holds, by their index; and the sizes of all."""
    first, count = operator.samples.first, operator.num_samples
    number = min(_PARTS, count)
    local = range(operator.samples.local_count)
    parts = [[i for i in local if (first + i) % number == part] for part in range(number)]
    sizes = torch.tensor([len(range(part, count, number)) for part in range(number)], dtype=torch.float64)
    return parts, sizes
