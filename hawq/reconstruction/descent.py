"""Roundings of a single linear layer, improved one and two at a time: its error is a known quadratic function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hawq.modes import eval_mode
from hawq.quantization import original_weight, weight_quantizer
from hawq.reconstruction.rounding import SoftRounding

if TYPE_CHECKING:
    from hawq.reconstruction.optimizing import Data

_BATCH = 32  # images at a time
_MOST_ENTRIES = 2**26  # of a Gram matrix: half a GiB
_ENUMERATED_UP_TO = 16  # weights of a row all of whose roundings are tried
_PAIRS_UP_TO = 64  # weights of a row whose pairs are tried
_ROWS = 128  # at a time: what belongs to them stays in a processor's cache


class _Products(TorchFunctionMode):
    """Notes the products that are computed while it is active, whatever a layer does to its input before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Product] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.linear):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.seen.append(Product(func is F.conv2d, given, output))
        return output


@dataclass(frozen=True)
class Product:
    """A call of conv2d or linear: its arguments by name, and its output."""

    is_convolution: bool
    given: dict[str, Any]
    output: Tensor

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(self.given.get("groups", 1))

    def columns(self) -> Tensor:
        """What each output value is a product with, (groups, k, positions)."""
        x, weight = self.given["input"], self.given["weight"]
        if not self.is_convolution:
            return x.flatten(0, -2).T[None]  # type: ignore[no-any-return]
        padding, dilation = self.given.get("padding", 0), self.given.get("dilation", 1)
        if padding == "same":
            x = F.pad(x, _same(weight.shape[2:], dilation))
        numbers, stride = 0 if isinstance(padding, str) else padding, self.given.get("stride", 1)
        if tuple(weight.shape[2:]) == (1, 1) and not any(_pair(numbers)):
            unfolded = x[..., :: _pair(stride)[0], :: _pair(stride)[1]]
        else:
            unfolded = F.unfold(x, weight.shape[2:], dilation, numbers, stride)  # (N, channels · k, L)
        return unfolded.movedim(1, 0).reshape(self.groups, unfolded.shape[1] // self.groups, -1)

    def rows(self, outputs: Tensor) -> Tensor:
        """Outputs as (groups, out / groups, positions)."""
        flat = (outputs.movedim(1, 0) if self.is_convolution else outputs.movedim(-1, 0)).flatten(1)
        return flat.reshape(self.groups, -1, flat.shape[1])


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _same(kernel: Sequence[int], dilation: int | Sequence[int]) -> list[int]:
    """Zeros before and after each axis, the last axis first, with which padding="same" keeps sizes."""
    steps = [dilation] * len(kernel) if isinstance(dilation, int) else dilation
    totals = [step * (size - 1) for step, size in zip(steps, kernel, strict=True)]
    return [part for total in reversed(totals) for part in (total // 2, total - total // 2)]


def _product(layer: nn.Module, data: Data, places: slice) -> tuple[Product | None, Tensor]:
    """The one product that a layer's outputs for some images are, and these outputs; None where they are not one."""
    with _Products() as products:
        outputs = data.inputs.call(layer, data.inputs.at(places))
    if len(products.seen) != 1:
        return None, outputs
    found = products.seen[0]
    is_plain = torch.equal(found.output, outputs) and torch.equal(found.given["weight"], cast(Tensor, layer.weight))
    return (found if is_plain else None), outputs


@torch.no_grad()
def can_descend(layer: nn.Module, rounding: SoftRounding, data: Data) -> bool:
    """Whether the error of a layer's outputs is the quadratic form that `descend` takes it for: one product with its
    weight as it is, of its input or what the layer makes of that (padding of its own, say)."""
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or rounding.large is not None:
        return False
    with eval_mode(layer):
        product, _ = _product(layer, data, slice(0, 1))
    if product is None:
        return False
    values = rounding.codes() * rounding.scale
    quantizer = weight_quantizer(layer)
    is_identity = quantizer is not None and torch.equal(quantizer.preimage(values), values)
    per_row = original_weight(layer)[0].numel()
    return is_identity and product.groups * per_row**2 <= _MOST_ENTRIES


@torch.no_grad()
def descend(layer: nn.Module, rounding: SoftRounding, data: Data, *, optimised: bool) -> None:
    """Moves the weight of `layer`, which rounds to nearest, to the best roundings found from one beginning or two.

    With r the error of an output channel's values and x what enters (both over images and positions), moving its
    weights by δ changes mean r² by 2 δ·b + δᵀGδ, b = mean r·x and G = mean x xᵀ. From rounding to nearest, and from
    roundings that were optimised, the change of one weight (or, in short rows, two) that lowers it most is made until
    none does; each channel keeps the better end. Rows of up to 16 weights, as depthwise convolutions have, get the best
    of all their roundings.

    Args:
        layer: for which `can_descend`, changed in place; its weight's quantiser rounds to nearest.
        rounding: the choices, and roundings to begin with.
        optimised: whether these are other ones than the nearest.
        data: of the layer as a unit, without weights.
    """
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    shape = original_weight(layer).shape
    gram, slope = _moments(layer, data)
    nearest = quantizer.codes(original_weight(layer))[0].flatten(1)
    base, is_free = rounding.base.flatten(1), rounding.is_free.flatten(1)
    steps = rounding.scale.expand(shape).flatten(1).double()
    if base.shape[1] <= _ENUMERATED_UP_TO:
        ups = _best_of_all((base - nearest).double() * steps, is_free, steps, slope, gram)
        original_weight(layer).data.copy_((base + ups.to(base.dtype)).view(shape) * rounding.scale)
        return
    ends = []
    for codes in (nearest, rounding.codes().flatten(1)) if optimised else (nearest,):
        moved = (codes - nearest).double() * steps
        product = _times(moved, gram)
        change = (moved * (2 * slope + product)).sum(1)
        ends.append(_descended_in_parts((codes - base).double(), is_free, steps, slope + product, gram, change))
    (first, first_change), (second, second_change) = ends[0], ends[-1]
    ups = torch.where((second_change < first_change)[:, None], second, first)
    codes = (base + ups.to(base.dtype)).view(shape)
    original_weight(layer).data.copy_(codes * rounding.scale)


def _descended_in_parts(
    ups: Tensor, is_free: Tensor, steps: Tensor, slope: Tensor, gram: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """`_descended`, some rows at a time where all of them are of one group."""
    if len(gram) > 1:
        return _descended(ups, is_free, steps, slope, gram, change)
    parts = zip(*(each.split(_ROWS) for each in (ups, is_free, steps, slope)), change.split(_ROWS), strict=True)
    ends = [_descended(up, free, step, way, gram, so_far) for up, free, step, way, so_far in parts]
    return torch.cat([end[0] for end in ends]), torch.cat([end[1] for end in ends])


def _descended(
    ups: Tensor, is_free: Tensor, steps: Tensor, slope: Tensor, gram: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """Roundings (rows, k) from which no change of one or two lowers the error, and the change of it so far (rows,)."""
    group = torch.arange(len(ups), device=ups.device) // (len(ups) // len(gram))
    diagonal = gram.diagonal(dim1=1, dim2=2)[group]
    tolerance = 1e-12 * (steps.square() * diagonal).amax(1).clamp_min(1e-300)
    for _ in range(4 * ups.shape[1]):
        moves = steps * (1 - 2 * ups)
        gains = (2 * moves * slope + moves.square() * diagonal).masked_fill(~is_free, torch.inf)
        gain, places = gains.min(1, keepdim=True)
        if ups.shape[1] <= _PAIRS_UP_TO and not bool((gain[:, 0] < -tolerance).any()):
            gain, places = _best_pair(gains, moves, gram[group])
        better = gain[:, 0] < -tolerance
        if not bool(better.any()):
            break
        chosen = moves.gather(1, places) * better[:, None]  # (rows, moves at once)
        change = change + torch.where(better, gain[:, 0], 0.0)
        slope = slope + (chosen[:, :, None] * gram[group[:, None], places]).sum(1)
        old = ups.gather(1, places)
        ups = ups.scatter(1, places, torch.where(better[:, None], 1 - old, old))
    return ups, change


def _best_of_all(down: Tensor, is_free: Tensor, steps: Tensor, slope: Tensor, gram: Tensor) -> Tensor:
    """The roundings (rows, k) with the least error among all 2^k; `down` is what rounding all down moves, (rows, k)."""
    k = down.shape[1]
    choices = (torch.arange(2**k, device=down.device)[:, None] >> torch.arange(k, device=down.device)) & 1  # (2^k, k)
    per_group = len(down) // len(gram)
    found = []
    for row in range(len(down)):
        ups = choices * is_free[row]
        moved = down[row] + ups * steps[row]
        change = 2 * moved @ slope[row] + (moved @ gram[row // per_group] * moved).sum(1)
        found.append(ups[change.argmin()])
    return torch.stack(found)


def _best_pair(gains: Tensor, moves: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The least change of the error by two moves, (rows, 1), and which two, (rows, 2); G as (rows, k, k)."""
    k = gains.shape[1]
    both = gram * moves[:, :, None] * moves[:, None, :]
    pairs = gains[:, :, None] + gains[:, None, :] + 2 * both
    pairs.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    gain, place = pairs.flatten(1).min(1, keepdim=True)
    return gain, torch.cat([place // k, place % k], 1)


def _times(rows: Tensor, gram: Tensor) -> Tensor:
    """Each row (out, k) times the Gram matrix of its group, (groups, k, k)."""
    return (rows.view(len(gram), -1, rows.shape[1]) @ gram).flatten(0, 1)


def _moments(layer: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    """G = mean x xᵀ (groups, k, k) and b = mean r·x (out, k), in float64, over all images and positions."""
    gram: Tensor | float = 0.0
    slope: Tensor | float = 0.0
    count = 0
    with eval_mode(layer):
        for first in range(0, len(data), _BATCH):
            places = slice(first, min(first + _BATCH, len(data)))
            product, outputs = _product(layer, data, places)
            assert product is not None
            x, r = product.columns(), product.rows(outputs - data.targets.at(places))
            gram = gram + (x @ x.mT).double()
            slope = slope + (r @ x.mT).double().flatten(0, 1)
            count += x.shape[2]
    assert isinstance(gram, Tensor) and isinstance(slope, Tensor)
    return gram / count, slope / count
