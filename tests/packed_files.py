"""Packed files to tamper with: their parts, and the same file with other parts and a checksum that fits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import samples
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from sensitivities import plan_of
from torch import Tensor, nn

from hawq.blocks import find_blocks
from hawq.export import save
from hawq.export.schema import checksum
from hawq.quantization import Quantizer, RVQuant, quantize

Parts = tuple[dict[str, Any], dict[str, Tensor]]  # header, tensors
IMAGES = samples(4, torch.float32)[0]


class Everything(nn.Module):
    """A network whose packed file has each of the format's tensors but the wide ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
        self.register_buffer("order", torch.randperm(4))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.stem(x).relu()).mean((2, 3))[:, self.order]
        return self.head(x * self.mask)


def packed(path: Path, quantizer: Quantizer | None = None) -> Path:
    """The file of an `Everything` with 2 to 8 bits; one with large values unless another quantiser is given."""
    model = Everything().eval()
    blocks = find_blocks(model, IMAGES)
    plan = plan_of(blocks, [8, 2, 3, 5][: len(blocks)], 4)
    return save(quantize(model, blocks, plan, [IMAGES], quantizer or RVQuant(10)), path, {"dataset": "digits"})


def parts_of(path: Path) -> Parts:
    """Header and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hawq"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewritten(parts: Parts) -> bytes:
    """A file of these parts, with the checksum that belongs to them."""
    header, tensors = copy.deepcopy(parts[0]), parts[1]
    header["checksum"] = checksum(header, tensors)
    return to_safetensors(tensors, {"hawq": json.dumps(header)})


def changed(parts: Parts, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> bytes:
    """`rewritten` after `change(header, tensors)` on a copy."""
    header, tensors = copy.deepcopy(parts[0]), {name: tensor.clone() for name, tensor in parts[1].items()}
    change(header, tensors)
    return rewritten((header, tensors))
