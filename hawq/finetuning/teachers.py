"""Networks that teach in place of the float one, alone or several together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hawq.errors import UserError
from hawq.records import Normalization
from hawq.structures import main_output


class Renormalized(nn.Module):
    """f(s·x + t): a network given images (N, 3, H, W) that were normalised for another one.

    s = σ/σ', t = (μ − μ')/σ' for each channel, so that it sees (x·σ + μ − μ')/σ'.

    Args:
        network: f, which expects mean μ' and deviation σ'.
        own: μ' and σ'.
        given: μ and σ of the images as they come.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: Normalization, given: Normalization) -> None:
        super().__init__()
        self.network = network
        mean, std, given_mean, given_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (own.mean, own.std, given.mean, given.std)
        )
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's main output, (N, K, ...)."""
        return main_output(self.network(inputs * self.scale + self.shift))


class Ensemble(nn.Module):
    """Mean of several networks' main outputs, (1/k) Σ f_i(x), (N, K, ...).

    Of logits it is the geometric mean of their distributions, one of the two that Hinton et al. name (1503.02531, §1).

    Raises UserError: no network at all.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise UserError("an ensemble of no networks teaches nothing: give at least one")
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of what every network gives for inputs (N, ...)."""
        return torch.stack([main_output(network(inputs)) for network in self.networks]).mean(0)
