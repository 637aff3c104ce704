"""A float network together with the input it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FloatModel:
    """A float network and the input it expects; `normalization` is None while it has not been trained."""

    network: nn.Module
    normalization: Normalization | None
    preprocessing: Preprocessing

    def check_input(self, example: Tensor) -> None:
        """Runs the network once, in eval mode and without gradients.

        Args:
            example: one prepared image (1, 3, H, W), on the network's device.

        Raises:
            ValueError: the network cannot take images of this size; the message names the size it was made for.
            RuntimeError: out of memory.
        """
        reason = why_refused(self.network, example)
        if reason is not None:
            height, width = example.shape[-2:]
            size = self.preprocessing.size
            made_for = f"give input_size={size}, for which it was made"
            remedy = made_for if size not in (height, width) else "give another input_size, or null"
            raise ValueError(
                f"the network {type(self.network).__name__} cannot take images of {height}×{width} ({reason}): {remedy}"
            )


def why_refused(network: nn.Module, example: Tensor) -> str | None:
    """Why a network cannot take images like `example` (N, 3, H, W), in its own words; None where it can.

    Raises RuntimeError: out of memory.
    """
    import torch

    from hawq.modes import eval_mode

    try:
        with torch.no_grad(), eval_mode(network):
            network(example)
    except Exception as error:  # networks refuse a size by any exception: assertions, shapes, divisions by zero
        if "memory" in str(error):
            raise
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
