"""Operators with second derivatives: equal values, and Hessians that PyTorch alone cannot give."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hawq.curvature.double_backward import second_derivatives


def attention(x: Tensor) -> Tensor:
    tokens = x.reshape(1, 2, 4)
    return F.scaled_dot_product_attention(tokens, 2 * tokens, tokens)


@pytest.mark.parametrize("function", [F.hardsigmoid, torch.nn.Hardsigmoid(), attention, F.hardswish])
def test_values_and_second_derivatives(function):
    x = torch.linspace(-4.1, 4.3, 8, dtype=torch.float64, requires_grad=True)
    plain = function(x)
    with second_derivatives():
        torch.testing.assert_close(function(x), plain)
        assert torch.autograd.gradgradcheck(lambda y: function(y).square(), (x,))


def test_pytorch_alone_has_none():
    x = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.hardsigmoid(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="hardsigmoid_backward"):
        gradient.sum().backward()
