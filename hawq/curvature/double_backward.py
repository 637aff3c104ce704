"""Operations whose second derivatives PyTorch lacks, or has at a needless cost, written as others of equal value.

PyTorch's double backward of a convolution always forms the derivative by its weight, wanted or not; of a frozen batch
norm and of a ReLU it forms terms that are zero. Here a convolution y = W ∗ x has two nodes in the graph, one for each
argument, so the engine runs only those that lead to a wanted weight; a frozen batch norm is the affine map that it is,
and the slope of a ReLU is a constant. Fused attention and the hard sigmoid have no second derivative at all; here they
are plain matrix products and a ReLU6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}  # function → spatial dimensions

_RELUS = {F.relu: False, torch.relu: False, Tensor.relu: False, F.relu_: True, torch.relu_: True, Tensor.relu_: True}
_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d} | {
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
}


@contextmanager
def second_derivatives() -> Iterator[None]:
    """While active, a forward builds a graph that can be differentiated twice, at no more cost than it must."""
    with sdpa_kernel(SDPBackend.MATH), _Rewritten():
        yield


def lacks_second_derivative(error: RuntimeError) -> bool:
    """Whether an error says that something can be differentiated only once."""
    phrases = ("not implemented", "once_differentiable", "differentiate twice", "double backward")
    return any(phrase in str(error) for phrase in phrases)


class _Rewritten(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(func, _CONVOLUTIONS[func], *args, **given)
        if func is F.batch_norm:
            return _batch_norm(*args, **given)
        if func in _RELUS:
            return _relu(_RELUS[func], *args, **given)
        if func is F.hardtanh:
            return _hardtanh(*args, **given)
        if func in _POOLS and args and not given.get("return_indices"):
            return _Pool.apply(args[0], lambda input: func(input, *args[1:], **given))
        if func in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return _hardtanh(args[0] + 3, 0, 6) / 6  # Howard et al., 1905.02244, §5.2
        return func(*args, **given)


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
    """(x − μ) / √(σ² + ε) · w + b as one fused multiply and add; with batch statistics it is left to PyTorch."""
    if training or running_mean is None or running_var is None or running_var.dtype != input.dtype:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()  # (C,)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1, *(1,) * (input.dim() - 2))
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


def _convolution(
    func: Callable[..., Tensor],
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`func`, as a convolution with two nodes; padding by name, unbatched input and constants are left to PyTorch."""
    known = weight.requires_grad or input.requires_grad
    if not (known and torch.is_grad_enabled()) or isinstance(padding, str) or input.dim() != dimensions + 2:
        return func(input, weight, bias, stride, padding, dilation, groups)
    sizes = (_tuple(value, dimensions) for value in (stride, padding, dilation))
    geometry = (*sizes, groups)
    if input.is_contiguous(memory_format=torch.channels_last) and weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)  # else each product reorders its result
    with torch.no_grad():
        output = func(input, weight, None, *geometry)
    token = _ByWeight.apply(weight, (input,), output, geometry)
    output = _ByInput.apply(input, (weight,), token, output, geometry)
    return output if bias is None else output + bias.view(-1, *(1,) * dimensions)


def _tuple(value: int | tuple[int, ...], length: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * length if len(values) == 1 else values


class _ByWeight(torch.autograd.Function):
    """The edge W → y. Its output is a token: zeros in the shape of y that take no memory and carry ∂L/∂y back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, input: tuple[Tensor], output: Tensor, geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.input, ctx.geometry = input, geometry  # in a tuple: with its own graph, but not as an edge of this node
        return output.new_zeros(()).expand(output.shape)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂W = ∂L/∂y ⋆ x, written with operations that can be differentiated again."""
        (weight,), (input,), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.input, ctx.geometry
        by_weight = torch.ops.aten.convolution_backward(
            outer[0], input, weight, None, stride, padding, dilation, False, [0], groups, [False, True, False]
        )[1]
        return by_weight, None, None, None


class _ByInput(torch.autograd.Function):
    """The edge x → y, whose value is the convolution computed before."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: tuple[Tensor], token: Tensor, output: Tensor, geometry: Any) -> Tensor:
        ctx.input_shape, ctx.weight, ctx.geometry = input.shape, weight, geometry
        ctx.mark_dirty(output)  # returned itself: a view could not be changed in place
        return output

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂x = Wᵀ ∗ ∂L/∂y as a transposed convolution: its own derivative is one convolution."""
        (weight,), (stride, padding, dilation, groups) = ctx.weight, ctx.geometry
        by_input = None
        if ctx.needs_input_grad[0]:
            reached = [
                (out - 1) * s - 2 * p + d * (kernel - 1) + 1
                for out, s, p, d, kernel in zip(
                    outer[0].shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
                )
            ]
            missing = [size - seen for size, seen in zip(ctx.input_shape[2:], reached, strict=True)]
            by_input = torch.convolution(outer[0], weight, None, stride, padding, dilation, True, missing, groups)
        return by_input, None, outer[0], None, None


def _relu(always_inplace: bool, input: Tensor, inplace: bool = False) -> Tensor:
    output: Tensor = _Clamp.apply(input, 0, inf, always_inplace or inplace)
    return output


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    output: Tensor = _Clamp.apply(input, min_val, max_val, inplace)
    return output


class _Clamp(torch.autograd.Function):
    """min(max(x, low), high). Its slope is a constant: no second derivative runs through it to what lies below."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, low: float, high: float, inplace: bool) -> Tensor:
        output = input.clamp_(low, high) if inplace else input.clamp(low, high)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(output)
        ctx.ends = low, high
        return output

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(outer[0], output.detach(), *ctx.ends), None, None, None


class _Pool(torch.autograd.Function):
    """A pooling, linear between its kinks: its slope is a constant."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.input = input.detach().requires_grad_()
            ctx.output = function(ctx.input)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        (slope,) = torch.autograd.grad(ctx.output, ctx.input, outer[0], create_graph=again, retain_graph=True)
        return slope, None
