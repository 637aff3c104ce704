"""A float network that answers faster: its batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

from hawq.modes import eval_mode
from hawq.structures import main_output

_TOLERANCE = 1e-3  # of the largest output

_LOG = logging.getLogger(__name__)


def folded(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of a network for eval mode, y = γ(Wx − μ)/σ + β as one convolution (`torch.fx`); else the network itself.

    Where the whole cannot be traced, its parts are folded as far as they can be. It is the network itself where nothing
    can be, or the copy answers otherwise.

    Args:
        model: left unchanged.
        inputs: (N, ...), which both are compared on.
    """
    with eval_mode(model), torch.no_grad():
        expected = main_output(model(inputs.clone()))
        try:
            fast = _fused(copy.deepcopy(model))
            found = main_output(fast(inputs.clone()))
        except Exception as error:  # whatever a network does while it is copied and called
            _LOG.debug("batch norms stay where they are: %s", error)
            return model
    if _norms(fast) == _norms(model):
        return model
    if found.shape != expected.shape or not bool(((found - expected).abs() <= _TOLERANCE * expected.abs().max()).all()):
        return model
    return fast.requires_grad_(False)


def _fused(module: nn.Module) -> nn.Module:
    """The module with its batch norms folded, or with those of its parts where it cannot be traced as a whole."""
    if not _norms(module) or isinstance(module, _BatchNorm):
        return module
    try:
        return fuse(module, inplace=True)
    except Exception as error:  # whatever a network does while it is traced
        _LOG.debug("%s is folded part by part: %s", type(module).__name__, error)
    for name, child in list(module.named_children()):
        setattr(module, name, _fused(child))
    return module


def _norms(module: nn.Module) -> int:
    """How many batch norms there are in a module."""
    return sum(isinstance(part, _BatchNorm) for part in module.modules())
