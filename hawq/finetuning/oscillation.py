"""Weights that oscillate between two codes: counted, and frozen on request (Nagel et al., 2203.11086)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hawq.quantization import FakeQuantizer, original_weight, weight_quantizer
from hawq.quantization.dorefa import SquashedQuantizer
from hawq.records import Block

OSCILLATIONS = ("ignore", "watch", "freeze")
WATCHED_BITS = 4  # on finer grids it does not matter
MOMENTUM = 0.01  # m of the paper
_COUNTED = 0.005  # frequency from which the paper calls a weight oscillating


class Oscillations:
    """Follows the integer codes of all weights of at most 4 bits, step by step.

    A weight oscillates at step t when its code changes and its previous change had the opposite sign; its frequency is
    f ← m·o + (1 − m)·f with o ∈ {0, 1} (2203.11086, §4.1, eq. 4).

    Args:
        blocks: of the network that is trained.
        threshold: weights with a larger f are frozen from then on at their most frequent code, the rounded running mean
            of their codes (iterative freezing, §4.3, Algorithm 1); None only counts.
    """

    def __init__(self, blocks: tuple[Block, ...], threshold: float | None = None) -> None:
        self._blocks, self._threshold = blocks, threshold
        self._weights: dict[str, dict[str, Tensor]] = {}  # layer → its tensors, each of the weight's shape
        self._bits: dict[str, int] = {}  # layer → width of the codes that these follow

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Reads the codes after an optimiser step, and resets frozen weights."""
        layers = dict(model.named_modules())
        for name in (name for block in self._blocks for name in block.layers):
            quantizer = weight_quantizer(layers[name])
            if quantizer is None or not quantizer.enabled or quantizer.bits > WATCHED_BITS:
                continue
            weight = original_weight(layers[name])
            codes, scale, low = quantizer.codes(weight)
            same_codes = self._bits.get(name) == quantizer.bits
            stored = self._weights[name] if same_codes else self._begin(codes)
            self._bits[name] = quantizer.bits
            known = self._weights[name] = {key: tensor.to(codes.device) for key, tensor in stored.items()}
            if self._threshold is None:
                _follow(known, codes.half())
                continue
            _follow(known, torch.where(known["frozen"], known["held"], codes.half()))
            _freeze(known, self._threshold, low)
            held = _latent(quantizer, known["held"].to(scale.dtype) * scale)
            weight.copy_(torch.where(known["frozen"], held, weight))

    def _begin(self, codes: Tensor) -> dict[str, Tensor]:
        """State of a layer; `direction` is the sign of the last change of each code, codes are whole or halves."""
        still = torch.zeros_like(codes, dtype=torch.int8)
        state = {"codes": codes.half(), "direction": still, "frequency": torch.zeros_like(codes)}
        if self._threshold is not None:
            state |= {"mean": codes.clone(), "held": codes.half(), "frozen": still.bool()}
        return state

    def row(self) -> dict[str, float]:
        """Share of oscillating weights (f > 0.005), in all and per watched block; of frozen ones where they are."""
        if not self._weights:
            return {}
        shares = {"oscillating": self._share("frequency", self._weights)}
        if self._threshold is not None:
            shares["frozen"] = self._share("frozen", self._weights)
        watched = {block.name: [n for n in block.layers if n in self._weights] for block in self._blocks}
        return shares | {f"oscillating/{b}": self._share("frequency", names) for b, names in watched.items() if names}

    def _share(self, key: str, names: Iterable[str]) -> float:
        tensors = [self._weights[name][key] for name in names]
        return sum(int((x > _COUNTED).sum()) for x in tensors) / sum(x.numel() for x in tensors)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Layer → its tensors, each of the weight's shape, and its "bits"."""
        return {name: tensors | {"bits": self._bits[name]} for name, tensors in self._weights.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continues from what `state_dict` gave."""
        self._weights = {name: {k: x for k, x in stored.items() if k != "bits"} for name, stored in state.items()}
        self._bits = {name: stored["bits"] for name, stored in state.items()}


def _follow(known: dict[str, Tensor], codes: Tensor) -> None:
    known["frequency"].mul_(1 - MOMENTUM)
    places = (codes != known["codes"]).nonzero(as_tuple=True)  # few in any step
    direction = (codes[places] - known["codes"][places]).sign().to(torch.int8)
    known["frequency"][places] += MOMENTUM * (direction * known["direction"][places] < 0)
    known["direction"][places] = direction
    known["codes"] = codes


def _freeze(known: dict[str, Tensor], threshold: float, low: Tensor) -> None:
    known["mean"].lerp_(known["codes"].to(low.dtype), MOMENTUM)
    new = (known["frequency"] > threshold) & ~known["frozen"]
    most = (known["mean"] - low).round() + low
    known["held"] = torch.where(new, most.half(), known["held"])
    known["frozen"] |= new


def _latent(quantizer: FakeQuantizer, value: Tensor) -> Tensor:
    """The weight that the quantiser maps to `value`."""
    return value.atanh() if isinstance(quantizer, SquashedQuantizer) else value
