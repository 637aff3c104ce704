"""The analysis: top Hessian eigenvalue and weight errors of every block."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hawq.blocks import trace_blocks
from hawq.curvature import Batch, BlockHessian, Loss, PowerIteration, Solver, State
from hawq.errors import UserError
from hawq.progress import Progress
from hawq.quantization import LSQ, Quantizer, weight_errors
from hawq.records import Block, BlockSensitivity, Estimate, Sensitivity


@dataclass(frozen=True)
class Analysis:
    """How much data the Hessian sees.

    Args:
        num_samples: training samples, drawn once by the run's seed, that the loss is averaged over.
        batch_size: samples in one pass; with all samples in one batch no forward is repeated.
        save_every_seconds: how often a half-done analysis is stored, so that a killed run can go on.

    Raises:
        ValueError: a value out of range.
    """

    num_samples: int = 256
    batch_size: int = 256
    save_every_seconds: float = 20.0

    def __post_init__(self) -> None:
        for key in ("num_samples", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"analysis.{key}={getattr(self, key)} is out of range: give 1 or more")
        if self.save_every_seconds < 0:
            raise ValueError(f"analysis.save_every_seconds={self.save_every_seconds} is out of range: give 0 or more")


class CurvatureCheckpoint(Protocol):
    """Where a half-done analysis is kept."""

    def load(self) -> dict[str, State] | None: ...

    def save(self, states: dict[str, State]) -> None: ...


@dataclass(frozen=True)
class Curvature:
    """λ_i of every block and the mean loss it belongs to: the expensive half of a sensitivity."""

    eigenvalues: dict[str, Estimate]
    solver: str
    num_samples: int
    loss: float


def analyze(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss = nn.functional.cross_entropy,
    *,
    solver: Solver | None = None,
    quantizer: Quantizer | None = None,
    seed: int = 0,
) -> Sensitivity:
    """λ_i, and ‖Q_b(W_i) − W_i‖²₂ for b = 2 … 8, of every block (HAWQ, 1905.03696).

    Args:
        model: the float network; it stays as it is.
        blocks: from `find_blocks`.
        batches: fixed (inputs, targets) pairs, on the model's device.
        loss: mean loss over a batch of (outputs, targets).
        solver: power iteration unless given.
        quantizer: LSQ unless given; decides Q_b.
        seed: of the random start vectors.

    Raises:
        ValueError: no batches, or a loss that is not finite.
    """
    curvature = measure_curvature(model, blocks, batches, loss, solver or PowerIteration(), seed)
    if any(block.macs is None for block in blocks):
        blocks = trace_blocks(model, blocks, batches[0][0][:1])
    return combine(model, blocks, curvature, quantizer or LSQ())


def measure_curvature(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    loss: Loss,
    solver: Solver,
    seed: int,
    checkpoint: CurvatureCheckpoint | None = None,
    save_every_seconds: float = 20.0,
    on_estimate: Callable[[str, Estimate], None] = lambda name, estimate: None,
) -> Curvature:
    """Runs one solver a block in lockstep: every pass over the data serves all blocks that are not done yet.

    `on_estimate` hears each block's result as soon as it stands. Raises ValueError as `BlockHessian` does.
    """
    hessian = BlockHessian(model, {block.name: block_weights(model, block) for block in blocks}, batches, loss)
    states = checkpoint.load() if checkpoint else None
    if states is None:
        states = {b.name: solver.start(hessian.start_vector(b.name, _generator(seed, b.name))) for b in blocks}
    saved, rounds = time.monotonic(), 0
    done = {name for name, state in states.items() if state["done"]}
    with Progress(len(states), "analysis (blocks)", done=len(done)) as progress:
        while len(done) < len(states):
            waiting = {name: state["vector"] for name, state in states.items() if name not in done}
            for name, product in hessian.products(waiting).items():
                if not bool(product.isfinite().all()):
                    raise UserError(f"the curvature of block {name!r} is not finite: check the weights and the loss")
                states[name] = solver.update(states[name], product)
                if states[name]["done"]:
                    done.add(name)
                    estimate = solver.estimate(states[name])
                    on_estimate(name, estimate)
                    progress.advance(1, f"λ({name}) = {estimate}")
            rounds += 1
            progress.advance(0, f"{rounds} rounds of products")
            if checkpoint and time.monotonic() - saved >= save_every_seconds:
                checkpoint.save(states)
                saved = time.monotonic()
    eigenvalues = {block.name: solver.estimate(states[block.name]) for block in blocks}
    return Curvature(eigenvalues, solver.name, hessian.num_samples, hessian.mean_loss)


def combine(model: nn.Module, blocks: Sequence[Block], curvature: Curvature, quantizer: Quantizer) -> Sensitivity:
    """The curvature of each block beside its weight errors under `quantizer`."""
    rows = tuple(
        BlockSensitivity(
            block=block,
            eigenvalue=curvature.eigenvalues[block.name],
            weight_errors=weight_errors(block_weights(model, block), quantizer),
        )
        for block in blocks
    )
    return Sensitivity(rows, curvature.solver, curvature.num_samples, curvature.loss)


def block_weights(model: nn.Module, block: Block) -> list[Tensor]:
    """The distinct weight tensors W_i of a block, in the order of its layers."""
    layers = dict(model.named_modules())
    unique = {id(layers[layer].weight): layers[layer].weight for layer in block.layers}
    return list(unique.values())  # type: ignore[arg-type]


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator that depends on the seed and the block's name only, not on the order of blocks."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
