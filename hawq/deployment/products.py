"""Convolutions and matrix products of integers, with the proof that 32 bits hold their sums."""

from __future__ import annotations

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor
from torch.nn import functional as F

from hawq.deployment.graph import attribute
from hawq.deployment.integers import Integers

_MOST = 2**31 - 1


def convolution(node: NodeProto, x: Integers, weight: Integers, bias: np.ndarray | None = None) -> tuple[Integers, int]:
    """A Conv with its bias as integers of step x · weight; (accumulators, bits that hold them for any input)."""
    spatial = x.values.ndim - 2
    pads = attribute(node, "pads", [0] * 2 * spatial)
    around = [pad for axis in reversed(range(spatial)) for pad in (pads[axis], pads[axis + spatial])]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    summed = convolve(
        F.pad(_exact(x.values), around),
        _exact(weight.values),
        stride=attribute(node, "strides", [1] * spatial),
        dilation=attribute(node, "dilations", [1] * spatial),
        groups=attribute(node, "group", 1),
    )
    return _accumulated(node, summed, x, weight, 0, bias)


def gemm(node: NodeProto, x: Integers, weight: Integers, bias: np.ndarray | None = None) -> tuple[Integers, int]:
    """x Wᵀ + bias, as `convolution`."""
    transposed = bool(attribute(node, "transB", 0))
    own = weight if transposed else _turned(weight)
    return _accumulated(node, _exact(x.values) @ _exact(own.values).T, x, own, 0, bias)


def matmul(node: NodeProto, x: Integers, weight: Integers, bias: np.ndarray | None = None) -> tuple[Integers, int]:
    """x W over the last axis, as `convolution`."""
    own = _turned(weight)
    return _accumulated(node, _exact(x.values) @ _exact(own.values).T, x, own, 0, bias, channel_axis=-1)


def _accumulated(
    node: NodeProto,
    summed: Tensor,
    x: Integers,
    weight: Integers,
    axis: int,
    bias: np.ndarray | None,
    channel_axis: int = 1,
) -> tuple[Integers, int]:
    if x.step.ndim:
        raise ValueError(f"{node.name} reads a tensor with several steps: deploy=dyadic needs a grid at its input")
    values = summed.to(torch.int64).numpy()
    out = weight.values.shape[axis]
    steps = (weight.step * x.step).reshape(-1) if weight.step.ndim else np.full(out, float(weight.step * x.step))
    own = np.zeros(out, np.int64) if bias is None else np.rint(bias / steps).astype(np.int64)
    rows = weight.values.reshape(out, -1)
    positive, negative = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    low, high = min(x.low, 0), max(x.high, 0)  # padding adds zeros
    least = int((positive * low + negative * high + np.minimum(own, 0)).min())
    most = int((positive * high + negative * low + np.maximum(own, 0)).max())
    if max(-least - 1, most) > _MOST:
        raise ValueError(f"{node.name}: its sums may need more than 32 bits, {least:,} to {most:,}: give it fewer bits")
    shape = [1] * values.ndim
    shape[channel_axis] = -1
    proven = max((-least - 1).bit_length() if least < 0 else 0, most.bit_length()) + 1
    return Integers(values + own.reshape(shape), steps.reshape(shape), least, most), proven


def _exact(values: np.ndarray) -> Tensor:
    """float64 sums integers below 2^53 exactly, in any order; proven to stay below 2^31."""
    return torch.from_numpy(np.ascontiguousarray(values)).double()


def _turned(weight: Integers) -> Integers:
    step = weight.step.T if weight.step.ndim else weight.step
    return Integers(weight.values.T, step, weight.low, weight.high)
