"""Fake quantisation: values on an integer grid, kept as floats, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _FakeQuantize(torch.autograd.Function):
    """y = s · clip(round(x/s), lo, hi); gradients as in LSQ (1902.08153, eq. 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ratio = x / scale
        codes = nearest(ratio, low, high)
        ctx.save_for_backward(ratio, codes, scale, low, high)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ratio, codes, scale, low, high = ctx.saved_tensors
        inside = (ratio >= low) & (ratio <= high)
        grad_x = grads[0] * inside
        grad_scale = None
        if ctx.needs_input_grad[1]:  # ∂y/∂s = code − x/s inside the range, code outside
            grad_scale = (grads[0] * codes - grad_x * ratio).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None


def nearest(ratio: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The code nearest to each ratio x/s: low, low + 1, … high."""
    half = low - low.floor()  # 0, or ½ for a grid without zero
    return ((ratio - half).round() + half).clamp(low, high)


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """y = s · clip(round(x/s), lo, hi), with ∂y/∂x = 1 inside [lo·s, hi·s] and 0 outside (straight-through).

    `scale`, `low` and `high` broadcast against `x`; `low` ≤ 0 ≤ `high` are whole numbers, or both a half more. When
    `scale` needs a gradient it gets ∂y/∂s = clip(round(x/s)) − x/s inside the range and lo or hi outside (LSQ,
    1902.08153, eq. 3).
    """
    out: Tensor = _FakeQuantize.apply(x, scale, low, high)
    return out


class FakeQuantizer(nn.Module):
    """A tensor's quantiser: passes through until `initialise` has seen data, then y = s · clip(round(x/s), lo, hi).

    Subclasses say where the scale comes from: `initialise(x)` prepares it, `grid(x)` returns it. As a parametrisation
    of a weight and as the quantiser of a layer's input it is the same module.

    Args:
        bits: width, 2 to 8.
        channel_axis: axis with one scale for each index, or None for one scale in all.
    """

    keeps_large = False
    """Whether values above the grid, |x| > s·hi, stay as they are instead of being clipped."""

    shaped_by_data: tuple[str, ...] = ()
    """Names of tensors that get their shape in `initialise`; a stored shape wins over the empty one."""

    def __init__(self, bits: int, channel_axis: int | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.channel_axis = channel_axis
        self.enabled = False

    def initialise(self, x: Tensor) -> None:
        """Chooses the range from data and switches the quantiser on."""
        raise NotImplementedError

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, lo, hi) for `x`, each broadcastable against it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        quantized = fake_quantize(x, *self.grid(x))
        return torch.where(self.is_large(x), x, quantized) if self.keeps_large else quantized

    def is_large(self, x: Tensor) -> Tensor:
        """Where a value lies above the grid in magnitude."""
        scale, _, high = self.grid(x)
        return x.abs() > scale * high

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(codes of `x`, scale, lo): `codes · scale` equals `forward(x)` bit for bit, but for large values kept."""
        scale, low, high = self.grid(x)
        return nearest(x / scale, low, high), scale, low

    def get_extra_state(self) -> dict[str, Any]:
        return {"enabled": self.enabled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.enabled = state["enabled"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.shaped_by_data:
            if prefix + name in state_dict:
                mine = getattr(self, name)
                mine.data = torch.empty_like(state_dict[prefix + name], device=mine.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, enabled={self.enabled}"
