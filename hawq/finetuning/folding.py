"""A float network that answers faster: its batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from hawq.modes import eval_mode
from hawq.structures import main_output

_TOLERANCE = 1e-3  # of the largest output

_LOG = logging.getLogger(__name__)


def folded(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of a network for eval mode, y = γ(Wx − μ)/σ + β as one convolution (`torch.fx`); else the network itself.

    It is the network itself where that cannot be traced, or the copy answers otherwise.

    Args:
        model: left unchanged.
        inputs: (N, ...), which both are compared on.
    """
    with eval_mode(model), torch.no_grad():
        expected = main_output(model(inputs.clone()))
        try:
            fast = fuse(copy.deepcopy(model), inplace=True)
            found = main_output(fast(inputs.clone()))
        except Exception as error:  # whatever a network does while it is traced
            _LOG.debug("batch norms stay where they are: %s", error)
            return model
    if found.shape != expected.shape or not bool(((found - expected).abs() <= _TOLERANCE * expected.abs().max()).all()):
        return model
    return fast.requires_grad_(False)
