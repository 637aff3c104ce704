"""The Gauss-Newton matrix as a sum of outer products: its heaviest terms one by one, the others by random sketches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hawq.curvature.operator import BlockOperator
from hawq.distributed import all_gather, rank
from hawq.errors import UserError

_ENTRIES = 2**24  # of the matrices that are decomposed at one time
_ENTRIES_KEPT = 2**26  # of all decompositions; larger ones are recomputed for each series of draws
_DRAWS = 16  # sketches in a series
_NEGATIVE = 1e-4  # relative to the largest eigenvalue: more than rounding

Chunk = tuple[int, Tensor, Tensor]
"""First sample, σ (n, C) and u (n, C, C) in columns."""


@dataclass(frozen=True)
class _Head:
    """One direction √σ u of the outputs of one sample."""

    weight: float
    owner: int
    sample: int
    direction: int
    slope: Tensor


class OutputFactor:
    """G_ii = Σ_n Σ_k r_nk r_nkᵀ, r_nk = √(σ_nk/N) J_inᵀ u_nk, with S_n = Σ_k σ_nk u_nk u_nkᵀ = ∂²L_n/∂z_n².

    (ViViT, Dangel et al., 2106.02624, eq. 4.) One row costs one backward of one sample and serves all blocks. Where
    training has memorised the data, a few rows hold nearly all of G. The heaviest rows are the heads.

    Args:
        operator: of either curvature, on a network that sees samples alone; its network, loss and samples are used.
        most_heads: most rows, those with the largest σ, that are given one by one.
        rest: share of Σ σ that may be left to the other rows; once it is, there are no more heads.
        seed: of the random signs.

    Raises:
        UserError: a curvature of the outputs that is not finite.
    """

    def __init__(self, operator: BlockOperator, most_heads: int, rest: float, seed: int) -> None:
        self._operator, self._seed = operator, seed
        self._drawn: tuple[int, Tensor] | None = None
        self._spectra = list(_spectra(operator)) if _size(operator) <= _ENTRIES_KEPT else None
        own: list[_Head] = []
        total, convex = 0.0, True
        for first, values, vectors in self._chunks():
            own += _heaviest(first, values, vectors, most_heads)
            total += float(values.double().sum())
            convex = convex and float(values.min()) >= -_NEGATIVE * float(values.max())
        total = sum(all_gather(total))
        everyone = _first([head for part in all_gather(_first(own, most_heads)) for head in part], most_heads)
        left = accumulate((-head.weight for head in everyone), initial=total)
        enough = next((count for count, weight in enumerate(left) if weight <= rest * total), len(everyone))
        self._chosen = sorted(everyone[:enough], key=lambda head: (head.owner, head.sample))  # one forward a sample
        self.is_factor = all(all_gather(convex))
        """Whether G is this sum: the loss of each sample is convex by its outputs."""

    @property
    def num_heads(self) -> int:
        """Rows that are given one by one."""
        return len(self._chosen)

    def row(self, index: int) -> dict[str, Tensor]:
        """For every block, (n_i,): head number `index`; after the last, random sketches s = Σ ± r of all other rows r,
        E s sᵀ = Σ r rᵀ.
        """
        if index >= self.num_heads:
            return self._operator.vjp(self._signed(index - self.num_heads))
        head = self._chosen[index]
        slope = head.slope / self._operator.num_samples**0.5
        return self._operator.vjp_of_sample(head.sample if head.owner == rank() else None, slope)

    def _signed(self, draw: int) -> Tensor:
        """Σ_k ± √(σ_nk/N) u_nk over the directions that are not heads, for each sample of this process, (n, C)."""
        series, place = divmod(draw, _DRAWS)
        if self._drawn is None or self._drawn[0] != series:
            self._drawn = series, self._draw(series)
        return self._drawn[1][place]

    def _draw(self, series: int) -> Tensor:
        """`_signed` for a whole series of draws, (draws, n, C): one decomposition serves all of them."""
        operator, slopes = self._operator, [torch.zeros(_DRAWS, 0, 0)]
        generator = torch.Generator().manual_seed(self._seed + series)
        own = [head for head in self._chosen if head.owner == rank()]
        for first, values, vectors in self._chunks():
            if len(slopes) == 1:  # the signs of all processes, so that they do not depend on who holds a sample
                shape = (_DRAWS, operator.num_samples, values.shape[1])
                signs = torch.randint(2, shape, generator=generator, dtype=torch.int8) * 2 - 1
            begin = operator.samples.first + first
            left = values.clamp_min(0).sqrt() * signs[:, begin : begin + len(values)].to(values)
            for head in own:
                if first <= head.sample < first + len(values):
                    left[:, head.sample - first, head.direction] = 0.0
            slopes.append(torch.einsum("dnk,nck->dnc", left, vectors) / operator.num_samples**0.5)
        return torch.cat(slopes[1:] or slopes, dim=1)

    def _chunks(self) -> Iterable[Chunk]:
        return self._spectra if self._spectra is not None else _spectra(self._operator)


def _size(operator: BlockOperator) -> int:
    return 0 if operator.outputs is None else operator.outputs.numel() * operator.outputs.shape[1]


def _spectra(operator: BlockOperator) -> Iterator[Chunk]:
    """S_n of this process' samples, decomposed; L_n as the mean loss of its batch has it."""
    if operator.outputs is None:
        return
    size, first = operator.outputs.shape[1], 0
    chunk = max(1, _ENTRIES // size**2)
    for (inputs, targets), _ in operator.samples.weighted():
        leaf = operator.outputs[first : first + len(inputs)].detach().requires_grad_()
        loss = len(leaf) * operator.loss(leaf, targets)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
        axes = torch.eye(size).to(leaf)
        for begin in range(0, len(leaf), chunk):
            own = slice(begin, begin + chunk)
            rows = [  # samples do not mix, so a sum over them gives each its own row
                torch.autograd.grad(slope[own], leaf, axis.expand_as(leaf[own]), retain_graph=True)[0][own]
                for axis in axes
            ]
            stacked = torch.stack(rows, dim=1)
            if not bool(stacked.isfinite().all()):
                raise UserError(
                    "the curvature of the loss by the outputs is not finite: check the weights and the loss"
                )
            values, vectors = torch.linalg.eigh(stacked)
            yield first + begin, values, vectors
        first += len(leaf)


def _heaviest(first: int, values: Tensor, vectors: Tensor, count: int) -> list[_Head]:
    top = values.flatten().topk(min(count, values.numel()))
    heads = []
    for weight, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        sample, direction = divmod(place, values.shape[1])
        if weight > 0:
            slope = weight**0.5 * vectors[sample, :, direction]
            heads.append(_Head(weight, rank(), first + sample, direction, slope))
    return heads


def _first(heads: Sequence[_Head], count: int) -> list[_Head]:
    """The `count` heaviest, ties in a fixed order."""
    return sorted(heads, key=lambda head: (-head.weight, head.owner, head.sample, head.direction))[:count]
