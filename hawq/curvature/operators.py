"""Operators for which PyTorch has no second derivative, written in ones for which it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention is computed as plain matrix products, hard sigmoid as relu6(x + 3) / 6: equal up to rounding."""
    with sdpa_kernel(SDPBackend.MATH), _HardSigmoid():
        yield


class _HardSigmoid(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return hard_sigmoid(args[0])
        return function(*args, **(kwargs or {}))


def hard_sigmoid(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) / 6 (Howard et al., 1905.02244, §5.2)."""
    return F.relu6(x + 3) / 6
