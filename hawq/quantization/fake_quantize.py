"""Fake quantisation: values on an integer grid, kept as floats, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PIECE = 2**18  # values summed in their own precision
_SHORT_CODES = 32  # most codes that 8 significant bits (bfloat16) resolve well


class _FakeQuantize(torch.autograd.Function):
    """y = s · clip(round(x/s), lo, hi), and the gradients of `fake_quantize`, from x and y alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, clip_only: bool) -> Tensor:
        codes = nearest(x, scale, low, high)
        if _is_eager_cpu(x):
            out = codes.mul_(scale.item() if _stays_short(x, scale, low, high) else scale)
        else:
            out = codes * scale  # not in place: torch.compile of PyTorch 2.11 would lose every gradient
        ctx.save_for_backward(x, out, scale, low, high)
        ctx.clip_only = clip_only
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, out, scale, low, high = ctx.saved_tensors
        grad, grad_scale = grads[0], None
        in_one_pass = _is_in_one_pass(x, scale, low, high)
        x = x.to(grad.dtype)  # on fine grids short numbers were widened
        inside, ends = (_inside_in_one_pass if in_one_pass else _inside), (low * scale, high * scale)
        grad_x = inside(grad, x, *ends)
        if ctx.needs_input_grad[1]:  # s · ∂y/∂s = y − x inside the range, or nothing; y outside
            inner = out if ctx.clip_only else x
            if in_one_pass and _is_short(x):  # a difference of two sums would be lost in their roundings
                total = (out - inside(inner, x, *ends)).mul_(grad).sum(dtype=torch.float32)
            elif in_one_pass:
                total = _dot(grad, out) - _dot(grad_x, inner)
            else:
                total = (grad * out - grad_x * inner).sum_to_size(scale.shape)
            grad_scale = total / scale
        return grad_x, grad_scale, None, None, None


def _is_eager_cpu(x: Tensor) -> bool:
    """Whether reading a value is free: a GPU would synchronise, and a compiler fuses plain expressions better."""
    return x.is_cpu and not torch.compiler.is_compiling()


def _is_in_one_pass(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether all values share one grid whose numbers may be read."""
    return _is_eager_cpu(x) and scale.numel() == low.numel() == high.numel() == 1


def _is_short(x: Tensor) -> bool:
    """Whether the dtype has too few bits for fine grids: bfloat16 or float16."""
    return x.dtype in (torch.bfloat16, torch.float16)


def _stays_short(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether bfloat16 and float16 are quantised without widening: on one coarse grid, on a CPU."""
    return _is_short(x) and _is_in_one_pass(x, scale, low, high) and (high - low).item() < _SHORT_CODES


def _inside(grad: Tensor, x: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """`grad` where least ≤ x ≤ most, else 0."""
    return grad * ((x >= least) & (x <= most))


def _inside_in_one_pass(grad: Tensor, x: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """`_inside` for one range: the gradient of hardtanh, which excludes the ends, on a range one float wider."""
    tiny, infinity = torch.finfo(x.dtype).tiny, torch.full_like(least, torch.inf)  # the float after 0 is subnormal
    below, above = torch.nextafter(least - tiny, -infinity), torch.nextafter(most + tiny, infinity)
    inside: Tensor = torch.ops.aten.hardtanh_backward(grad, x, below.item(), above.item())
    return inside


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b in one pass, summed in float64; tensors of equal layout, such as channels last, are not copied."""
    order = sorted(range(a.dim()), key=a.stride, reverse=True)
    pieces = zip(*(tensor.permute(order).reshape(-1).split(_PIECE) for tensor in (a, b)), strict=True)
    return torch.stack([torch.dot(p, q) for p, q in pieces]).double().sum()


def nearest(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The code nearest to each x · (1/s), one of low, low + 1, … high, as a new tensor of the shape of x."""
    half = low - low.floor()  # 0, or ½ for a grid without zero
    if not _is_eager_cpu(x):
        return ((x * scale.reciprocal() - half).round() + half).clamp(low, high)
    inverse = scale.reciprocal()
    ratio = x * (inverse.item() if _stays_short(x, scale, low, high) else inverse)  # a tensor would widen x
    if half.any():
        ratio.sub_(half).round_().add_(half)
    else:
        ratio.round_()
    if low.numel() == high.numel() == 1:
        return ratio.clamp_(low.item(), high.item())  # with tensors as ends this takes as long as all the rest
    return ratio.clamp_(low, high)


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, *, clip_only: bool = False) -> Tensor:
    """y = s · clip(round(x/s), lo, hi), with ∂y/∂x = 1 inside [lo·s, hi·s] and 0 outside (straight-through).

    `scale`, `low` and `high` broadcast against `x`; `low` ≤ 0 ≤ `high` are whole numbers, or both whole plus ½. When
    `scale` requires a gradient it gets ∂y/∂s = clip(round(x/s)) − x/s inside the range and lo or hi outside (LSQ,
    1902.08153, eq. 3); with `clip_only` that of the clip alone, 0 inside (PACT, 1805.06085, eq. 3).
    """
    out: Tensor = _FakeQuantize.apply(x, scale, low, high, clip_only)
    return out


class FakeQuantizer(nn.Module):
    """A tensor's quantiser: the identity until `initialise` has seen data, then y = s · clip(round(x/s), lo, hi).

    Subclasses say where the scale comes from: `initialise(x)` prepares it, `grid(x)` returns it. The same module serves
    as parametrisation of a weight and as quantiser of a layer's input.

    Args:
        bits: bit-width, 1 to 8.
        channel_axis: axis with one scale per index, or None for a single scale.
    """

    keeps_large = False
    """Whether values above the grid, |x| > s·hi, pass unchanged instead of being clipped."""

    shaped_by_data: tuple[str, ...] = ()
    """Names of tensors whose shape is set in `initialise`; loading a state takes the stored shape."""

    def __init__(self, bits: int, channel_axis: int | None = None) -> None:
        super().__init__()
        self.bits = self.planned_bits = bits
        self.channel_axis = channel_axis
        self.enabled = False

    def initialise(self, x: Tensor) -> None:
        """Chooses the range from data and switches the quantiser on."""
        raise NotImplementedError

    def widen(self, least_bits: int) -> None:
        """Takes the planned bit-width, or `least_bits` if that is more; `initialise` must follow."""
        self.bits = max(self.planned_bits, least_bits)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, of the shape of x; x itself while switched off."""
        if not self.enabled:
            return x
        quantized = fake_quantize(x, *self.grid(x))
        return torch.where(self.is_large(x), x, quantized) if self.keeps_large else quantized

    def is_large(self, x: Tensor) -> Tensor:
        """Where a value is above the grid in magnitude; bool, of the shape of x."""
        scale, _, high = self.grid(x)
        return x.abs() > scale * high

    @torch.no_grad()
    def positions(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x/s before rounding and clipping, s, lo, hi): where the values stand between the points of their grid."""
        scale, low, high = self.grid(x)
        return x / scale, scale, low, high

    @torch.no_grad()
    def preimage(self, values: Tensor) -> Tensor:
        """An x with `forward(x)` = `values`, which are points of the grid."""
        return values

    def hold(self, x: Tensor) -> None:
        """Keeps the grid of `x` from now on, whatever is quantised; for grids that follow their data."""

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(codes of `x`, scale, lo): `codes · scale` equals `forward(x)` bit for bit, except for large values kept."""
        scale, low, high = self.grid(x)
        return nearest(x, scale, low, high), scale, low

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the quantiser is on, for `state_dict`, and its bit-width where that is not the planned one."""
        widened = {"bits": self.bits} if self.bits != self.planned_bits else {}
        return {"enabled": self.enabled} | widened

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_extra_state` gave."""
        self.enabled = state["enabled"]
        self.bits = state.get("bits", self.planned_bits)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.shaped_by_data:
            if prefix + name in state_dict:
                mine = getattr(self, name)
                mine.data = torch.empty_like(state_dict[prefix + name], device=mine.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"bits={self.bits}, enabled={self.enabled}"
