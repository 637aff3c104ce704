"""Weights shared by k-means, as HAQ searches with for limits on the size: 2^b values per layer, at no given steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hawq.errors import UserError
from hawq.quantization import LSQ, Quantizer
from hawq.quantization.fake_quantize import FakeQuantizer

_STARTED_ON = 50_000  # values that the first centroids are drawn from


@dataclass(frozen=True)
class KMeans:
    """2^b centroids per weight by Lloyd's algorithm from a k-means++ start (Deep Compression, 1510.00149; HAQ).

    Args:
        iterations: of Lloyd's algorithm; HAQ's search takes 3.
        seed: of the start.
        activations: quantises what enters the layers.
    """

    iterations: int = 3
    seed: int = 0
    activations: Quantizer | None = None

    @property
    def name(self) -> str:
        """How records call it."""
        return "kmeans"

    def weight(self, bits: int) -> FakeQuantizer:
        """A new quantiser for weights (out, in, ...), of 1 to 8 bits."""
        return Clustered(bits, self.iterations, self.seed)

    def activation(self, bits: int) -> FakeQuantizer:
        """A new quantiser for layer inputs (N, ...), of 1 to 8 bits."""
        return (self.activations or LSQ()).activation(bits)


class Clustered(FakeQuantizer):
    """Each weight becomes the mean of its cluster; clusters are formed once, gradients pass straight through."""

    labels: Tensor
    shaped_by_data = ("labels",)

    def __init__(self, bits: int, iterations: int, seed: int) -> None:
        super().__init__(bits)
        self._iterations, self._seed = iterations, seed
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Forms the clusters of the weights and switches the quantiser on."""
        values = x.detach().double().cpu().numpy().reshape(-1)
        centroids = lloyd(values, 2**self.bits, self._iterations, np.random.default_rng(self._seed))
        self.labels = torch.from_numpy(nearest_centroid(values, centroids)).to(x.device).reshape(x.shape)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each weight's cluster, of the shape of x; x itself while switched off."""
        if not self.enabled:
            return x
        flat, labels = x.detach().reshape(-1), self.labels.reshape(-1)
        sums = torch.zeros(2**self.bits, dtype=x.dtype, device=x.device).index_add_(0, labels, flat)
        counts = torch.bincount(labels, minlength=2**self.bits).clamp(min=1)
        return (sums / counts)[self.labels] + (x - x.detach())

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raises UserError: the values have no common step."""
        raise UserError(
            "weights shared by k-means lie on no grid, they serve a search alone: fine-tune with another one"
        )


def lloyd(values: np.ndarray, count: int, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted centroids (≤ count,) of values (n,) after some iterations from a k-means++ start."""
    centroids = np.sort(_plus_plus(values, count, rng))
    for _ in range(iterations):
        labels = nearest_centroid(values, centroids)
        counts = np.bincount(labels, minlength=len(centroids))
        sums = np.bincount(labels, values, minlength=len(centroids))
        centroids = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centroids))
    return centroids


def nearest_centroid(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(n,): the index of the nearest of sorted centroids (k,)."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)


def _plus_plus(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Values drawn one by one, each with a probability by its squared distance to those before (k-means++)."""
    drawn = rng.choice(values, min(len(values), _STARTED_ON), replace=False)
    found = [float(rng.choice(drawn))]
    distance = (drawn - found[0]) ** 2
    while len(found) < min(count, len(drawn)) and distance.sum() > 0:
        found.append(float(rng.choice(drawn, p=distance / distance.sum())))
        distance = np.minimum(distance, (drawn - found[-1]) ** 2)
    return np.array(found)
