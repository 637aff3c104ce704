"""`second_derivatives` against PyTorch: equal values and derivatives, and Hessians that PyTorch alone cannot give."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from hawq.curvature.double_backward import second_derivatives

GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "stride and padding": {"stride": 2, "padding": 1},
    "stride that leaves a rest": {"stride": 3, "padding": 1},
    "much padding": {"padding": 3},
    "dilation": {"dilation": 2, "padding": 2},
    "dilation and stride": {"dilation": 2, "stride": 2, "padding": 1},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "one number for all axes": {"stride": (2,), "padding": (1,), "dilation": (1,)},
    "a list": {"stride": [2]},
}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def first_two_derivatives(function, arguments):
    """The value, the gradient of a curved function of it, and the gradient of a curved function of that."""
    value = function()
    first = torch.autograd.grad((value.sin() + value.square()).sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), arguments, allow_unused=True)
    return [value, *first, *second]


def assert_same_derivatives(function, arguments):
    expected = first_two_derivatives(function, arguments)
    with second_derivatives():
        found = first_two_derivatives(function, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "unbatched"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("dimensions", CONVOLUTIONS)
def test_convolutions(dimensions, geometry, batched):
    sides = (8, 7, 6)[:dimensions]
    input = draw(*((2,) if batched else ()), 4, *sides)
    weight, bias = draw(4, 4 // geometry.get("groups", 1), *[3] * dimensions), draw(4)
    convolve = CONVOLUTIONS[dimensions]
    assert_same_derivatives(lambda: convolve(input, weight, bias, **geometry), [input, weight, bias])


@pytest.mark.parametrize("kernel", [1, 2, (3, 1)], ids=str)
def test_kernels(kernel):
    layer, input = nn.Conv2d(4, 5, kernel, stride=2, padding=1).double(), draw(2, 4, 6, 9)
    assert_same_derivatives(lambda: layer(input), [input, *layer.parameters()])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_modes_and_layouts(mode, layout):
    layer, input = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode).double(), draw(2, 4, 6, 5)
    assert_same_derivatives(lambda: layer(input.contiguous(memory_format=layout)), [input, *layer.parameters()])


@pytest.mark.parametrize("wanted", ["input", "weight"])
def test_one_argument_that_is_constant(wanted):
    arguments = {"input": draw(2, 3, 6, 6), "weight": draw(4, 3, 3, 3)}
    constants = {name: value if name == wanted else value.detach() for name, value in arguments.items()}
    assert_same_derivatives(lambda: F.conv2d(**constants, padding=1), [arguments[wanted]])


def standardised():
    weight, input = draw(4, 3, 3, 3), draw(2, 3, 6, 6)
    return lambda: F.conv2d(input, (weight - weight.mean()) / weight.std(), padding=1), [input, weight]


def parametrized():
    layer, input = weight_norm(nn.Conv2d(3, 4, 3).double()), draw(2, 3, 6, 6)
    return lambda: layer(input), [input, *layer.parameters()]


def shared():
    weight, input = draw(3, 3, 3, 3), draw(2, 3, 6, 6)
    return lambda: F.conv2d(F.conv2d(input, weight, padding=1).tanh(), weight, stride=2), [input, weight]


def weight_made_of_the_input():
    input = draw(2, 3, 3, 3)
    return lambda: F.conv2d(input.exp(), input.sin(), padding=1), [input]


def rectified_in_place():
    weight, input = draw(4, 3, 3, 3), draw(2, 3, 6, 6)
    return lambda: F.conv2d(F.conv2d(input, weight[:3]).relu_(), weight), [input, weight]


@pytest.mark.parametrize(
    "made", [standardised, parametrized, shared, weight_made_of_the_input, rectified_in_place], ids=lambda f: f.__name__
)
def test_weights_and_inputs_with_graphs_of_their_own(made):
    assert_same_derivatives(*made())


NORMS = {
    "affine": nn.BatchNorm2d(4),
    "not affine": nn.BatchNorm2d(4, affine=False),
    "no statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "1d": nn.BatchNorm1d(4),
    "3d": nn.BatchNorm3d(4),
}
SHAPES = {"1d": (5, 4), "3d": (2, 4, 2, 3, 3)}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norms(name, training):
    norm, input = NORMS[name].double().train(training), draw(*SHAPES.get(name, (2, 4, 3, 3)))
    if norm.running_mean is not None:
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
        norm.momentum = 0.0  # the same statistics for the second pass
    assert_same_derivatives(lambda: norm(input), [input, *norm.parameters()])


def test_running_statistics_are_updated_in_training():
    norms = [nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()]
    input = draw(4, 3, 2, 2)
    norms[0](input)
    with second_derivatives():
        norms[1](input)
    assert torch.equal(norms[0].running_mean, norms[1].running_mean) and norms[0].running_mean.any()


def test_only_wanted_derivatives_are_formed():
    """H_ii v of a deep layer costs fewer operations: none for the weights above it, which nobody asked for."""
    first, second = (nn.Conv2d(3, 3, 3, padding=1, bias=False).double() for _ in range(2))
    input = torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def operations_of_a_product(mode):
        with mode:
            loss = second(first(input).tanh()).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, first.weight, create_graph=True)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(gradient, first.weight, torch.ones_like(gradient))
        return counter.get_total_flops()

    assert operations_of_a_product(second_derivatives()) < operations_of_a_product(torch.enable_grad())
