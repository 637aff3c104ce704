"""`torch.nn.MultiheadAttention` with projections that hooks can see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Result = TypeVar("Result")


class OpenAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` step by step: its own weight `in_proj_weight` first, the called layer `out_proj` last.

    PyTorch's forward hands both weights to one function (or one kernel), so that no hook sees what enters `out_proj`.
    Parameters, names and outputs are the same; an existing module becomes one by a change of its class.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """softmax(QKᵀ/√d + mask)·V of each head, as `nn.MultiheadAttention.forward`: shapes, masks and results.

        Args:
            query, key, value: (L, N, E), (N, L, E) with `batch_first`, or (L, E).
            key_padding_mask: (N, S) or (S,), True (or −∞) at keys to ignore.
            need_weights: whether the attention weights are returned, else None.
            attn_mask: (L, S) or (N · heads, L, S), True (or −∞) where attention is not allowed.
            average_attn_weights: weights (N, L, S) averaged over heads, instead of (N, heads, L, S).
            is_causal: says that `attn_mask` is the causal one; without a mask RuntimeError is raised.

        Returns:
            (output, of the shape of `query`; weights or None).
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = (self._rows(x, batched) for x in self._projected(query, key, value))  # (N, heads, L, d)
        mask = _additive_mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (N, L, E)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        if not batched:
            return output[0], weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The inputs times their thirds of `in_proj_weight`, each of the shape that it came in."""
        weight: Tensor = self.in_proj_weight  # type: ignore[assignment]
        bias: Tensor | None = self.in_proj_bias
        if query is key and key is value:
            return F.linear(query, weight, bias).chunk(3, -1)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weight.chunk(3), biases))

    def _rows(self, x: Tensor, batched: bool) -> Tensor:
        """(N, heads, L, d) of one projection."""
        rows = x if batched and self.batch_first else x.transpose(0, 1) if batched else x[None]
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def can_open(module: nn.Module) -> bool:
    """Whether a module is a plain attention whose three inputs share one weight, or was opened already."""
    return (
        (type(module) is nn.MultiheadAttention or isinstance(module, OpenAttention))
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def open_attention(model: nn.Module) -> list[nn.MultiheadAttention]:
    """Makes every plain attention of `model` an `OpenAttention`, in place; returns those that were not.

    Nested tensors, which PyTorch's own encoder makes of padded batches for its fused kernels, are switched off.
    """
    closed = [module for module in model.modules() if type(module) is nn.MultiheadAttention and can_open(module)]
    for attention in closed:
        attention.__class__ = OpenAttention
    if closed:
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
    return closed


@contextmanager
def opened_attention(model: nn.Module) -> Iterator[None]:
    """While active, every plain attention of `model` is open, and no fused kernel bypasses its layers."""
    encoders = {m: m.use_nested_tensor for m in model.modules() if isinstance(m, nn.TransformerEncoder)}
    fast = torch.backends.mha.get_fastpath_enabled()
    closed = open_attention(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in closed:
            module.__class__ = nn.MultiheadAttention
        for encoder, nested in encoders.items():
            encoder.use_nested_tensor = nested


def with_open_attention(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of a network (its first argument), run while `opened_attention` is active."""

    @wraps(function)
    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Result:
        with opened_attention(model):
            return function(model, *args, **kwargs)

    return run


def _additive_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores (N, heads, L, S): −∞ where a mask of bools is True, and masks of numbers."""
    mask = None if attn_mask is None else _as_numbers(attn_mask, q)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, q.shape[1])) if mask.shape[0] != 1 else mask[None]
    if key_padding_mask is None:
        return mask
    padding = _as_numbers(key_padding_mask, q).view(-1, 1, 1, k.shape[2])
    return padding if mask is None else mask + padding


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
