"""Curvature of every block as an operator on a fixed set of batches: what Hessian and Gauss-Newton have in common."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hawq.curvature.double_backward import lacks_second_derivative, second_derivatives
from hawq.curvature.memory import is_out_of_memory, peak_bytes, samples_that_fit
from hawq.distributed import all_gather, all_reduce, rank
from hawq.errors import UserError
from hawq.measurement import memory_in_use_bytes
from hawq.modes import analysis_mode

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]
Result = TypeVar("Result")

_VECTORS_KEPT = 12  # flat vectors of all weights that a solver holds at one time: a Krylov basis and its company
_BYTES_KEPT = 2**31  # of such vectors where memory is not limited
_WIDEST = 2048  # outputs of one sample, beyond which they are not kept
_TRIAL_SIZES = (2, 4)
_DRAWS = 32  # of signs; with few, two classes of equal sign would hide that a sample wavers between them


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
    ) -> None:
        self.model, self.loss, self._batches = model, loss, list(batches)
        self._parameters = {name: list(weights) for name, weights in parameters.items()}
        local = sum(len(inputs) for inputs, _ in batches)
        counts = all_gather(local)
        self.num_samples = sum(counts)
        if not self.num_samples:
            raise ValueError("the curvature needs at least one batch, none was given")
        self.first_sample = sum(counts[: rank()])
        self._batches = self._fast_layout()
        self._kept: Any = None
        self._kept_outputs: Tensor | None = None
        self._kept_sample: tuple[int, Tensor] | None = None
        self.seconds = dict.fromkeys(self._parameters, 0.0)
        self._passes: list[float] = []
        self._is_limited = memory_limit_bytes is not None
        if memory_limit_bytes is not None and local:
            self._batches = _cut(self._batches, self._fitting_size(memory_limit_bytes))
        self.mean_loss, self.influence, self.outputs = self._survey()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    @property
    def device(self) -> torch.device:
        return self._weights()[0].device

    @property
    def gradient_seconds(self) -> float:
        """Seconds of one forward and first backward over all samples of this process, the unit of cost."""
        return sum(self._passes) / max(len(self._passes), 1)

    @property
    def vectors_that_fit(self) -> int:
        """Most vectors of all weights that a solver may hold at one time: few under a memory limit, else 2 GiB."""
        return _VECTORS_KEPT if self._is_limited else max(_VECTORS_KEPT, _BYTES_KEPT // self._vector_bytes())

    @property
    def sees_samples_alone(self) -> bool:
        """Whether each sample has one output vector, whatever else is in its batch (no batch statistics)."""
        return all(all_gather(not self.influence or self._sees_own_alone()))

    @property
    def trace_is_gauss_newtons(self) -> bool:
        """Whether Tr(C_ii) = Tr(G_ii) for every block, seen on the network's graph."""
        return False

    @property
    def largest_batch(self) -> int:
        return max((len(inputs) for inputs, _ in self._batches), default=0)

    def random_vector(self, name: str, generator: torch.Generator) -> Tensor:
        """A standard normal vector (n_i,) for block `name`, drawn on the CPU, so equal on every device."""
        first = self._parameters[name][0]
        size = sum(weight.numel() for weight in self._parameters[name])
        return torch.randn(size, generator=generator, dtype=first.dtype).to(first.device)

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
            begin = first - self.first_sample
            return self.num_samples / len(outputs) * (outputs * slopes[begin : begin + len(outputs)]).sum()

        return self.until_it_fits(lambda: self._backwards(weighted, keep=True))

    def vjp_of_sample(self, sample: int | None, slope: Tensor) -> dict[str, Tensor]:
        """J_inᵀ a of every block, for one sample n of this process; None on the processes that do not hold it."""
        totals, began = self._zeros(), time.perf_counter()
        if sample is not None:
            with self.analysis():
                if self._kept_sample is None or self._kept_sample[0] != sample:
                    self._kept_sample = sample, self.model(self._sample(sample))
                totals = self._slopes((self._kept_sample[1] * slope).sum(), retain=True)
        self._count_shared(totals, began)
        all_reduce(list(totals.values()))
        return totals

    def subset(self, share: float) -> BlockOperator:
        """The same operator on the most influential samples only (at least one), `share` of all.

        Influence is the curvature of the loss at a sample's outputs; where training has memorised the data, few samples
        carry nearly all of it.
        """
        everyone = all_gather(self.influence)
        order = sorted(((-value, owner, i) for owner, own in enumerate(everyone) for i, value in enumerate(own)))
        chosen = {i for _, owner, i in order[: max(1, round(share * self.num_samples))] if owner == rank()}
        starts = accumulate((len(inputs) for inputs, _ in self._batches), initial=0)
        picked: list[Batch] = []
        for (inputs, targets), start in zip(self._batches, starts, strict=False):
            rows = [i - start for i in sorted(chosen) if start <= i < start + len(inputs)]
            if rows:
                picked.append((inputs[rows], targets[rows]))
        joined = [(torch.cat([i for i, _ in picked]), torch.cat([t for _, t in picked]))] if picked else []
        return type(self)(self.model, self._parameters, _cut(joined, self.largest_batch), self.loss)

    def weighted_batches(self) -> Iterator[tuple[Batch, float]]:
        """The batches of this process, each with its share of all samples."""
        for batch in self._batches:
            yield batch, len(batch[0]) / self.num_samples

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
            for batch, share in self.weighted_batches():
                began = time.perf_counter()
                shared = self._shared(batch)
                spent += self._count_shared(vectors, began)
                for name, vector in vectors.items():
                    began = time.perf_counter()
                    totals[name] += share * self._product(shared, name, vector)
                    self._synchronize(vector)
                    self.seconds[name] += time.perf_counter() - began
        if self._kept is None or not self._passes:
            self._passes.append(spent)
        all_reduce(list(totals.values()))
        return totals

    def _count_shared(self, vectors: Mapping[str, Tensor], began: float) -> float:
        """Seconds of the part that all blocks share, split evenly among them."""
        if vectors:
            self._synchronize(next(iter(vectors.values())))
        seconds = time.perf_counter() - began
        for name in vectors:
            self.seconds[name] += seconds / len(vectors)
        return seconds

    @staticmethod
    def _synchronize(tensor: Tensor) -> None:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    def _shared(self, batch: Batch) -> Any:
        if self._kept is not None:
            return self._kept
        with second_derivatives():
            outputs = self.model(batch[0])
        shared = self._linearize(outputs, batch[1], self._weights())
        if len(self._batches) == 1:
            self._kept = shared
        return shared

    def _backwards(self, scalar: Callable[[Tensor, Tensor, int], Tensor], *, keep: bool = False) -> dict[str, Tensor]:
        """∂/∂W_i of the mean over all samples of `scalar`(outputs, targets, first sample), for every block.

        With `keep` the graph of a single batch serves the next call as well.
        """
        totals, first, spent = self._zeros(), self.first_sample, 0.0
        kept: Tensor | None = None
        with self.analysis():
            for (inputs, targets), share in self.weighted_batches():
                began, kept = time.perf_counter(), self._kept_outputs
                outputs = self.model(inputs) if kept is None else kept
                if keep and len(self._batches) == 1:
                    self._kept_outputs = outputs
                mean = share * scalar(outputs, targets, first)
                for name, row in self._slopes(mean, retain=outputs is self._kept_outputs).items():
                    totals[name] += row
                first += len(inputs)
                spent += self._count_shared(totals, began)
        if kept is None:
            self._passes.append(spent)
        all_reduce(list(totals.values()))
        return totals

    def _slopes(self, value: Tensor, *, retain: bool) -> dict[str, Tensor]:
        """∂value/∂W_i of every block, each (n_i,) flat."""
        flat = torch.autograd.grad(
            value, self._weights(), retain_graph=retain, allow_unused=True, materialize_grads=True
        )
        return {name: torch.cat([row.reshape(-1) for row in rows]) for name, rows in self._by_block(flat).items()}

    def _zeros(self) -> dict[str, Tensor]:
        return {
            name: torch.cat([torch.zeros_like(weight).reshape(-1) for weight in weights])
            for name, weights in self._parameters.items()
        }

    def _sees_own_alone(self) -> bool:
        if self.outputs is None:
            return False
        with self.analysis(), torch.no_grad():
            try:
                alone = self.model(self._sample(0))
            except ValueError:  # statistics of a batch need more than one sample
                return False
        return torch.allclose(alone, self.outputs[:1], rtol=1e-3, atol=1e-5)

    def _sample(self, index: int) -> Tensor:
        """The input (1, ...) of one of this process' samples."""
        for inputs, _ in self._batches:
            if index < len(inputs):
                return inputs[index : index + 1]
            index -= len(inputs)
        raise IndexError("this process holds fewer samples")

    def _weights(self) -> list[Tensor]:
        return [weight for block in self._parameters.values() for weight in block]

    def _by_block(self, flat: Sequence[Tensor]) -> dict[str, Sequence[Tensor]]:
        """One entry a weight, in the order of `_weights`, grouped by block."""
        ends = list(accumulate(len(block) for block in self._parameters.values()))
        return {
            name: flat[end - len(block) : end]
            for (name, block), end in zip(self._parameters.items(), ends, strict=True)
        }

    def _parts(self, name: str, vector: Tensor) -> list[Tensor]:
        """A flat vector (n_i,) in the shapes of the block's weights."""
        weights = self._parameters[name]
        pieces = vector.split([weight.numel() for weight in weights])
        return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]

    def _survey(self) -> tuple[float, list[float], Tensor | None]:
        """The mean loss over all samples; |εᵀSε| of each own one, S = ∂²L/∂z² and ε random signs; outputs (n, C)."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        influence: list[float] = []
        rows: list[Tensor] = []
        with self.analysis():
            for (inputs, targets), share in self.weighted_batches():
                with torch.no_grad():
                    outputs = self.model(inputs)
                total += share * float(self.loss(outputs, targets))
                curvature = _output_curvature(self.loss, outputs, targets)
                influence += [1.0] * len(inputs) if curvature is None else curvature.tolist()
                if curvature is not None and outputs.dim() == 2 and outputs.shape[1] <= _WIDEST:
                    rows.append(outputs)
        all_reduce([total])
        if not math.isfinite(float(total)):
            raise UserError(
                f"the mean loss of the analysed samples is {float(total)}: a Hessian needs a finite one, "
                "check the weights"
            )
        return float(total), influence, torch.cat(rows) if rows else None

    def _fast_layout(self) -> list[Batch]:
        """The batches with `_channels_last` images, unless the network cannot take them (it may `view` them)."""
        fast = [(_channels_last(inputs), targets) for inputs, targets in self._batches]
        try:
            with self.analysis(), torch.no_grad():
                for inputs, _ in fast[:1]:
                    self.model(inputs[:1])
        except (RuntimeError, ValueError):  # also one that cannot take a single sample
            return self._batches
        return fast

    def _fitting_size(self, limit_bytes: float) -> int:
        """The largest batch with which products for every block stay below the limit."""
        inputs, targets = self._batches[0]
        sizes = sorted({min(size, len(inputs)) for size in _TRIAL_SIZES})
        if len(sizes) < 2:
            return sizes[0]
        zeros = {name: torch.zeros(sum(w.numel() for w in block)) for name, block in self._parameters.items()}

        def trial(size: int) -> None:
            with self.analysis():
                with second_derivatives():
                    outputs = self.model(inputs[:size])
                shared = self._linearize(outputs, targets[:size], self._weights())
                for name, vector in zeros.items():
                    self._product(shared, name, vector.to(outputs))

        needs = {size: peak_bytes(lambda size=size: trial(size)) for size in sizes}  # type: ignore[misc]
        kept = _VECTORS_KEPT * self._vector_bytes()
        return samples_that_fit(limit_bytes, memory_in_use_bytes(inputs.device) + kept, needs)

    def _vector_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._weights())

    def until_it_fits(self, work: Callable[[], Result]) -> Result:
        """Does `work`; when memory runs out, with batches of half the size."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.largest_batch <= 1:
                    raise UserError("memory runs out with a single sample in a batch: use a smaller input") from error
            self.release()
            self._batches = _cut(self._batches, self.largest_batch // 2)

    def analysis(self) -> AbstractContextManager[None]:
        """The network as the curvature sees it, with gradients for the blocks' weights alone."""
        return analysis_mode(self.model, self._weights())


def _cut(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The batches in pieces of at most `size` samples."""
    return [piece for i, t in batches for piece in zip(i.split(size), t.split(size), strict=True)]


def _output_curvature(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """|ε_nᵀ S ε_n| of each sample n (N,), mean over random draws of ε.

    None for outputs that are no tensor, or a loss that is linear or can be differentiated only once.
    """
    if not isinstance(outputs, Tensor):
        return None
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets), leaf, create_graph=True, materialize_grads=True)
    if not gradient.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(_DRAWS):
        signs = (torch.randint(2, outputs.shape[1:], generator=generator) * 2 - 1).to(outputs)
        signs = signs.expand_as(outputs)  # the same for every sample: influence does not depend on how batches are cut
        try:
            (row,) = torch.autograd.grad(gradient, leaf, signs, retain_graph=True, materialize_grads=True)
        except RuntimeError as error:
            if lacks_second_derivative(error):
                return None
            raise
        draws.append((row * signs).flatten(1).sum(1).abs())
    return len(outputs) * torch.stack(draws).mean(0)  # × N: the curvature of the sample's own loss


def _channels_last(inputs: Tensor) -> Tensor:
    """Images as channels last on CPUs, where convolutions and their transposes are then two to three times faster."""
    images = inputs.dim() == 4 and inputs.device.type == "cpu"
    return inputs.contiguous(memory_format=torch.channels_last) if images else inputs
