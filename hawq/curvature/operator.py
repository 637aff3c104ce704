"""Curvature of every block as an operator on a fixed set of batches: what Hessian and Gauss-Newton have in common."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hawq.curvature.block_weights import BlockWeights
from hawq.curvature.cost import CostMeter
from hawq.curvature.double_backward import second_derivatives
from hawq.curvature.memory import SHARE, fitting_size, is_out_of_memory, is_scarce, spared_limit
from hawq.curvature.samples import Batch, Samples, fast_layout
from hawq.curvature.survey import Loss, Survey, survey
from hawq.distributed import all_gather, all_reduce
from hawq.errors import UserError
from hawq.measurement import memory_in_use_bytes
from hawq.modes import analysis_mode

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)

_VECTORS_KEPT = 12  # flat vectors of all weights that a solver holds at once: a Krylov basis and a few more
_BYTES_KEPT = 2**31  # of such vectors where memory is not limited


class BlockOperator(ABC):
    """v ↦ C_ii v for every block i, C_ii a curvature matrix of the mean loss by the weights W_i of that block.

    Batches are the outer loop and blocks the inner one: one forward and one first backward per batch serve every block,
    and each product runs only through the graph above its block. With a single batch that graph is kept, so a product
    costs no forward at all. The model is in eval mode while it runs; its modes, gradients and buffers are left as they
    were. In a group of processes each holds its own samples, all sums go over all of them, and every process has to
    make the same calls.

    Args:
        model: any module; all its parameters must be on the device of the batches.
        parameters: block name → the weights W_i of that block.
        batches: fixed (inputs, targets) pairs; a ragged last batch is weighted by its samples.
        loss: mean loss over a batch of (outputs, targets).
        memory_limit_bytes: batches are cut so that this process stays below; None leaves them as they are.
        seen: what a forward over these samples shows, where that is known.

    Raises:
        ValueError: no batches, or a limit too small for one sample.
        UserError: a loss that is not finite, or memory that runs out with one sample in a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Sequence[Tensor]],
        batches: Sequence[Batch],
        loss: Loss,
        memory_limit_bytes: float | None = None,
        seen: Survey | None = None,
    ) -> None:
        self.model, self.loss = model, loss
        self.weights, self.samples, self.cost = BlockWeights(parameters), Samples(batches), CostMeter(parameters)
        self._is_limited, self._is_watched = memory_limit_bytes is not None, False
        self._kept: Any = None
        self._kept_outputs: Tensor | None = None
        self._kept_sample: tuple[int, Tensor] | None = None
        self.samples.batches = fast_layout(model, self.samples.batches)
        if memory_limit_bytes is not None and self.samples.local_count:
            self.samples.cut(self._fitting_size(memory_limit_bytes))
        if seen is None:
            with self.analysis():
                seen = survey(model, loss, self.samples, self.device)
        self.seen, self.mean_loss, self.influence, self.outputs = seen, seen.mean_loss, seen.influence, seen.outputs

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks, in the order they were given."""
        return self.weights.names

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @property
    def num_samples(self) -> int:
        """Samples of all processes."""
        return self.samples.count

    @property
    def vectors_that_fit(self) -> int:
        """Most vectors of all weights that a solver may hold at one time: few under a memory limit, else 2 GiB."""
        return _VECTORS_KEPT if self._is_limited else max(_VECTORS_KEPT, _BYTES_KEPT // self.weights.size_bytes)

    @property
    def sees_samples_alone(self) -> bool:
        """Whether each sample has one output vector, whatever else is in its batch (no batch statistics)."""
        return all(all_gather(not self.influence or self._sees_own_alone()))

    @property
    def trace_is_gauss_newtons(self) -> bool:
        """Whether Tr(C_ii) = Tr(G_ii) for every block, seen on the network's graph."""
        return False

    def spare_memory(self) -> None:
        """Cuts batches to a share of the memory that is free now, and from now on halves them when little is left."""
        limit = spared_limit(self.device)
        self._is_watched = limit is not None
        if limit is None or not self.samples.local_count:
            return
        size = self._fitting_size(limit, refuses=False)
        if size < self.samples.largest_batch:
            _LOG.info("batches of %d samples: more would take over %.0f %% of the free memory", size, 100 * SHARE)
            self.samples.cut(size)

    def random_vector(self, name: str, generator: torch.Generator) -> Tensor:
        """A standard normal vector (n_i,) for block `name`, drawn on the CPU, so equal on every device."""
        return self.weights.random(name, generator)

    def products(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """C_ii v_i for each block named in `vectors`, each (n_i,) flat in the order of the block's weights."""
        return self.until_it_fits(lambda: self._products(vectors))

    def gradients(self) -> dict[str, Tensor]:
        """g_i = ∂L/∂W_i of every block, each (n_i,) flat."""
        return self.until_it_fits(lambda: self._backwards(lambda outputs, targets, _: self.loss(outputs, targets)))

    def sketches(self, draw: int) -> dict[str, Tensor]:
        """s_i = Σ_n ε_n g_in / √N with random signs ε_n, g_in the gradient of sample n: E ‖s_i‖² = mean ‖g_in‖².

        That is the trace of the empirical Fisher matrix; one backward pass serves every block. `draw` seeds the signs.
        """
        generator = torch.Generator().manual_seed(draw)
        signs = torch.randint(2, (self.num_samples,), generator=generator) * 2 - 1

        def signed(outputs: Tensor, targets: Tensor, first: int) -> Tensor:
            leaf = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(leaf, targets), leaf, materialize_grads=True)
            own = signs[first : first + len(outputs)].to(outputs).view(-1, *(1,) * (outputs.dim() - 1))
            return math.sqrt(self.num_samples) * (outputs * slope * own).sum()

        return self.until_it_fits(lambda: self._backwards(signed, keep=True))

    def vjp(self, slopes: Tensor) -> dict[str, Tensor]:
        """Σ_n J_inᵀ a_n of every block, J_in = ∂z_n/∂W_i, over the samples of all processes.

        `slopes` (n, C) are the a_n of this process' samples, in their order.
        """

        def weighted(outputs: Tensor, targets: Tensor, first: int) -> Tensor:
            begin = first - self.samples.first
            return self.num_samples / len(outputs) * (outputs * slopes[begin : begin + len(outputs)]).sum()

        return self.until_it_fits(lambda: self._backwards(weighted, keep=True))

    def vjp_of_sample(self, sample: int | None, slope: Tensor) -> dict[str, Tensor]:
        """J_inᵀ a of every block, for one sample n of this process; None on the processes that do not hold it."""
        totals, began = self.weights.zeros(), time.perf_counter()
        if sample is not None:
            with self.analysis():
                if self._kept_sample is None or self._kept_sample[0] != sample:
                    self._kept_sample = sample, self.model(self.samples.input(sample))
                totals = self.weights.slopes((self._kept_sample[1] * slope).sum(), retain=True)
        self.cost.share(totals, began, self.device)
        all_reduce(list(totals.values()))
        return totals

    def subset(self, share: float) -> BlockOperator:
        """The same operator on the most influential samples only (at least one), `share` of all.

        Influence is the curvature of the loss at a sample's outputs; where training has memorised the data, few samples
        carry nearly all of it.
        """
        return self.of_samples(self.samples.heaviest(self.influence, share=share))

    def of_samples(self, chosen: Collection[int], seen: Survey | None = None) -> BlockOperator:
        """The same operator on some of this process's samples, by their index; `seen` is what is known of them."""
        parameters = {name: self.weights.of(name) for name in self.names}
        part = type(self)(self.model, parameters, self.samples.picked(chosen), self.loss, seen=seen)
        part._is_watched = self._is_watched
        return part

    def release(self) -> None:
        """Drops the graphs that were kept for a single batch."""
        self._kept = self._kept_outputs = self._kept_sample = None

    @abstractmethod
    def _linearize(self, outputs: Tensor, targets: Tensor, weights: Sequence[Tensor]) -> Any:
        """What the products of one batch share, from its outputs."""

    @abstractmethod
    def _product(self, shared: Any, name: str, vector: Tensor) -> Tensor:
        """C_ii v for one batch."""

    def _products(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        totals = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        spent = 0.0
        with self.analysis():
            for batch, share in self.samples.weighted():
                began = time.perf_counter()
                shared = self._shared(batch)
                spent += self.cost.share(vectors, began, self.device)
                for name, vector in vectors.items():
                    with self.cost.of(name, vector):
                        totals[name] += share * self._product(shared, name, vector)
        if self._kept is None or not self.cost.knows_a_pass:
            self.cost.add_pass(spent)
        all_reduce(list(totals.values()))
        return totals

    def _shared(self, batch: Batch) -> Any:
        if self._kept is not None:
            return self._kept
        with second_derivatives():
            outputs = self.model(batch[0])
        shared = self._linearize(outputs, batch[1], self.weights.all)
        if len(self.samples.batches) == 1:
            self._kept = shared
        return shared

    def _backwards(self, scalar: Callable[[Tensor, Tensor, int], Tensor], *, keep: bool = False) -> dict[str, Tensor]:
        """∂/∂W_i of the mean over all samples of `scalar`(outputs, targets, first sample), for every block.

        With `keep` the graph of a single batch serves the next call as well.
        """
        totals, first, spent = self.weights.zeros(), self.samples.first, 0.0
        kept: Tensor | None = None
        with self.analysis():
            for (inputs, targets), share in self.samples.weighted():
                began, kept = time.perf_counter(), self._kept_outputs
                outputs = self.model(inputs) if kept is None else kept
                if keep and len(self.samples.batches) == 1:
                    self._kept_outputs = outputs
                mean = share * scalar(outputs, targets, first)
                for name, row in self.weights.slopes(mean, retain=outputs is self._kept_outputs).items():
                    totals[name] += row
                first += len(inputs)
                spent += self.cost.share(totals, began, self.device)
        if kept is None:
            self.cost.add_pass(spent)
        all_reduce(list(totals.values()))
        return totals

    def _sees_own_alone(self) -> bool:
        if self.outputs is None:
            return False
        with self.analysis(), torch.no_grad():
            try:
                alone = self.model(self.samples.input(0))
            except ValueError:  # statistics of a batch need more than one sample
                return False
        return torch.allclose(alone, self.outputs[:1], rtol=1e-3, atol=1e-5)

    def _fitting_size(self, limit_bytes: float, *, refuses: bool = True) -> int:
        """The largest batch with which products for every block stay below the limit."""
        (inputs, targets), zeros = self.samples.batches[0], self.weights.zeros()
        kept = _VECTORS_KEPT * self.weights.size_bytes

        def trial(size: int) -> None:
            with self.analysis():
                with second_derivatives():
                    outputs = self.model(inputs[:size])
                shared = self._linearize(outputs, targets[:size], self.weights.all)
                for name, vector in zeros.items():
                    self._product(shared, name, vector)

        def held() -> float:
            return memory_in_use_bytes(inputs.device) + kept

        return fitting_size(trial, len(inputs), limit_bytes, held, refuses=refuses)

    def until_it_fits(self, work: Callable[[], Result]) -> Result:
        """Does `work`; when memory runs out, or is about to, with batches of half the size."""
        if self._is_watched and self.samples.largest_batch > 1 and is_scarce(self.device):
            _LOG.warning("little memory is left: batches of %d samples from now on", self.samples.largest_batch // 2)
            self.release()
            self.samples.cut(self.samples.largest_batch // 2)
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.samples.largest_batch <= 1:
                    raise UserError("memory runs out with a single sample in a batch: use a smaller input") from error
            self.release()
            self.samples.cut(self.samples.largest_batch // 2)

    def analysis(self) -> AbstractContextManager[None]:
        """The network as the curvature sees it, with gradients for the blocks' weights alone."""
        return analysis_mode(self.model, self.weights.all)
