"""Batch norm over a batch that several processes share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hawq.distributed import all_reduce, rank, world_size


def whole_batch_norm() -> AbstractContextManager[object]:
    """Inside, batch norms in train mode normalise over the samples of all processes together.

    Like `torch.nn.SyncBatchNorm`, but on any device and backend, and without replacing layers of the network. Every
    process must run the same network forward and backward, on at least one sample.
    """
    return _WholeBatch() if world_size() > 1 else nullcontext()


class _WholeBatch(TorchFunctionMode):
    """Intercepts every call of `F.batch_norm` in train mode, whatever layer makes it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, with the same argument names."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    out, mean, var, count = _Normalise.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return out


class _Normalise(torch.autograd.Function):
    """y = w·x̂ + b with x̂ = (x − μ)/√(σ² + ε), μ and σ² over the samples of all processes; x (N, C, ...), w, b (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _statistics(x)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂x = w/√(σ² + ε) · (g − mean g − x̂ · mean g·x̂), g = ∂L/∂y, L and means over all processes."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        axes, shape = _layout(x)
        grad = grads[0].to(mean.dtype)
        normal = (x - mean.view(shape)).mul_(inverse.view(shape))
        own = torch.stack([(grad * normal).sum(axes), grad.sum(axes)])  # of this process' part of L: ∂/∂w, ∂/∂b
        means = own / count
        all_reduce([means])
        factor = inverse if weight is None else inverse * weight
        inner = normal.mul_(-means[0].view(shape)).add_(grad).sub_(means[1].view(shape))
        grad_x = inner.mul_(factor.view(shape)).to(x.dtype)
        own_w, own_b = own if weight is None else own.to(weight.dtype)
        return grad_x, own_w if ctx.needs_input_grad[1] else None, own_b if ctx.needs_input_grad[2] else None, None


def _layout(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes but that of the channels, and the shape in which one value per channel broadcasts against x."""
    return [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and variance (C,) of each channel over all processes, and the number of values per channel.

    The statistics of the processes are combined as in Chan et al. (1979).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    axes, shape = _layout(x)
    channels, mean = x.shape[1], x.mean(axes)
    var = (x - mean.view(shape)).square_().mean(axes)  # far faster than torch.var_mean on a CPU
    rows = mean.new_zeros(world_size(), 2 * channels + 1)
    rows[rank()] = torch.cat([mean, var, mean.new_full((1,), x.numel() / channels)])
    all_reduce([rows])  # every process fills a row of its own: this gathers them
    means, variances, counts = rows[:, :channels], rows[:, channels : 2 * channels], rows[:, 2 * channels :]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return mean, (counts * (variances + (means - mean).square())).sum(0) / count, count
