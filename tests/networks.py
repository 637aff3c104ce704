"""Tiny networks, each with one trait that the real ones have, and the references the tests compare them with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hawq.distributed import shard
from hawq.layers import weight_name
from hawq.records import Block

SIDE = 6
NUM_CLASSES = 3
Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """A residual unit with batch norm between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.unit = ResidualUnit(4)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit(self.stem(x)).mean(dim=(2, 3)))


class ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + x)


class Branches(nn.Module):
    """Two branches that see the same input, in one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = BranchUnit()
        self.head = nn.Linear(5, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit(x).mean(dim=(2, 3)))


class BranchUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(3, 2, 1)
        self.wide = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x).tanh(), self.wide(x).sigmoid()], dim=1)


class Depthwise(nn.Module):
    """A depthwise convolution with stride, a pointwise one, in-place ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
            nn.ReLU6(inplace=True),
            nn.Conv2d(6, 4, 1),
            nn.ReLU6(inplace=True),
        )
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


class Tied(nn.Module):
    """One weight that serves two layers of the same unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * SIDE * SIDE, 5)
        self.unit = TiedUnit()
        self.head = nn.Linear(5, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit(self.stem(x.flatten(1))))


class TiedUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh()


class Dropped(nn.Module):
    """Convolutions with batch norm and dropout: a network whose training draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2)
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean(dim=(2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4), nn.Tanh(), nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "branches": Branches,
    "depthwise": Depthwise,
    "tied": Tied,
    "mlp": mlp,
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network of `NETWORKS` in eval mode, with batch norms that have seen other data."""
    torch.manual_seed(1)
    model = NETWORKS[name]().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval()


def running(model: nn.Module) -> Tensor:
    """Running statistics of every batch norm, one after another."""
    return torch.cat([x for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))])


def samples(num_samples: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    return images, torch.randint(NUM_CLASSES, (num_samples,), generator=generator)


def cut(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """One batch as several of the given sizes."""
    return list(zip(*(tensor.split(list(sizes)) for tensor in batch), strict=True))


def batches_of(num_batches: int, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    return cut(samples(num_batches * size, dtype), [size] * num_batches)


def explicit_hessian(model: nn.Module, block: Block, batch: Batch, loss: Callable[..., Tensor]) -> Tensor:
    """∂²L/∂W_i² (n_i, n_i) of the mean loss over one batch, column by column by automatic differentiation."""
    outputs, point = outputs_by_weights(model, block, batch[0])
    return torch.autograd.functional.hessian(lambda flat: loss(outputs(flat), batch[1]), point)


def explicit_gauss_newton(model: nn.Module, block: Block, batch: Batch, loss: Callable[..., Tensor]) -> Tensor:
    """JᵀSJ (n_i, n_i) with J = ∂z/∂W_i (N, K, n_i) and S = ∂²L/∂z² (N, K, N, K), both explicit."""
    outputs, point = outputs_by_weights(model, block, batch[0])
    jacobian = torch.autograd.functional.jacobian(outputs, point)
    curvature = torch.autograd.functional.hessian(lambda z: loss(z, batch[1]), outputs(point))
    return torch.einsum("nki,nkml,mlj->ij", jacobian, curvature, jacobian)


def outputs_by_weights(model: nn.Module, block: Block, inputs: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """W_i ↦ the network's outputs, and the W_i that it has; both flat (n_i,)."""
    known = dict(model.named_parameters())  # a shared weight stands here once
    weights = [f"{layer}.{weight_name(model.get_submodule(layer))}" for layer in block.layers]
    names = [name for name in weights if name in known]

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([known[name].numel() for name in names])
        weights = {name: part.view_as(known[name]) for name, part in zip(names, parts, strict=True)}
        return functional_call(model, weights, (inputs,))

    return outputs, torch.cat([known[name].detach().reshape(-1) for name in names])


class Fresh:
    """Training batches as a function of the step: a few fixed ones, again and again."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self.steps_per_epoch = len(batches)

    def batches(self, first_step: int, part: int = 0, parts: int = 1) -> itertools.islice:
        own = [(x[shard(len(x), part, parts)], y[shard(len(y), part, parts)]) for x, y in self._batches]
        return itertools.islice(itertools.cycle(own), first_step % len(own), None)
