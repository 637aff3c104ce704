"""Quantisers: properties of the grid, and closed forms for gradients and errors."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq.quantization import BIT_WIDTHS, LSQ, PACT, DoReFa, RVQuant, Uniform, fake_quantize, weight_errors
from hawq.quantization.dorefa import SquashedQuantizer
from hawq.quantization.lsq import LearnedStep
from hawq.quantization.pact import LearnedClip

QUANTIZERS = {
    "lsq": LSQ(),
    "lsq per tensor": LSQ(per_channel=False),
    "lsq as published": LSQ(balanced_bits=0),
    "lsq balanced": LSQ(balanced_bits=8),
    "uniform": Uniform(),
    "uniform minmax": Uniform("minmax", "minmax"),
    "uniform per tensor": Uniform(per_channel=False),
    "uniform asymmetric": Uniform(symmetric=False),
    "uniform asymmetric minmax per tensor": Uniform("minmax", "minmax", per_channel=False, symmetric=False),
    "uniform percentile": Uniform("percentile", "percentile", percentile=95),
    "uniform asymmetric percentile per tensor": Uniform(
        "percentile", "percentile", per_channel=False, symmetric=False, percentile=99
    ),
    "dorefa": DoReFa(),
    "pact": PACT(),
    "rvquant": RVQuant(),
    "rvquant without large values": RVQuant(0),
}
TENSORS = {
    "normal": torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
    "positive": torch.rand(4, 6, generator=torch.Generator().manual_seed(1)),
    "negative": -torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) - 1,
    "zero": torch.zeros(3, 2),
    "one value": torch.full((3, 2), 0.7),
    "large": torch.randn(2, 50, generator=torch.Generator().manual_seed(3)) * 1e6,
}

few = settings(max_examples=25, deadline=None)
many = settings(max_examples=100, deadline=None)
grids = st.tuples(
    st.integers(0, 2**31), st.integers(1, 8), st.floats(2**-12, 1000, width=32), st.booleans(), st.floats(0.1, 3.0)
)
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def drawn(grid):
    """(x, scale, low, high) from a Hypothesis draw; x reaches beyond the range for the larger spreads."""
    seed, bits, scale, signed, spread = grid
    low = (-(2 ** (bits - 1)) if bits > 1 else -0.5) if signed else 0
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * scale * 2 ** (bits - 1) * spread
    return x, *(torch.tensor([float(value)]) for value in (scale, low, low + 2**bits - 1))


def rounded(ratio, low):
    """The nearest of low, low + 1, …"""
    half = low % 1
    return (ratio - half).round() + half


@few
@given(grids)
def test_grid_is_idempotent_and_nearest(grid):
    x, scale, low, high = drawn(grid)
    y = fake_quantize(x, scale, low, high)
    assert torch.equal(fake_quantize(y, scale, low, high), y)
    inside = (x >= low * scale) & (x <= high * scale)
    assert ((y - x).abs()[inside] <= scale / 2 * (1 + 1e-4)).all()
    assert ((y >= low * scale) & (y <= high * scale)).all()


@few
@given(grids)
def test_grid_points_are_exact(grid):
    _, scale, low, high = drawn(grid)
    points = torch.arange(float(low), float(high) + 1) * scale
    assert torch.equal(fake_quantize(points, scale, low, high), points)


@pytest.mark.parametrize("in_one_pass", [True, False])
@few
@given(grid=grids)
def test_straight_through_gradients(in_one_pass, grid):
    x, scale, low, high = drawn(grid)
    x, scale = x.double().requires_grad_(), scale.double().requires_grad_()
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["hawq.quantization.fake_quantize"], "_is_eager_cpu", lambda _: in_one_pass)
        (fake_quantize(x, scale, low, high) * weights).sum().backward()
    ratio = (x / scale).detach()
    inside = (ratio >= low) & (ratio <= high)
    by_scale = torch.where(inside, rounded(ratio, low) - ratio, ratio.clamp(low, high))  # 1902.08153, eq. 3
    assert torch.equal(x.grad, weights * inside)
    torch.testing.assert_close(scale.grad, (weights * by_scale).sum().reshape(1), rtol=1e-9, atol=1e-9)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("of_grad", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_in_every_layout(of_x, of_grad):
    x, grad = of_x(TENSORS["normal"]).detach().requires_grad_(), of_grad(TENSORS["normal"].flip(0))
    scale, low, high = torch.tensor([0.2], requires_grad=True), torch.tensor([-4.0]), torch.tensor([3.0])
    got = torch.autograd.grad(fake_quantize(x, scale, low, high), (x, scale), grad)
    clipped = (x.detach() / scale).clamp(low, high)
    inside = (clipped * scale == x).detach() | ((x >= low * scale) & (x <= high * scale))
    expected = (grad * (clipped.round() - torch.where(inside, clipped, 0))).sum().reshape(1)
    torch.testing.assert_close(got, (grad * inside, expected.detach()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", [LSQ().weight, PACT().activation, DoReFa().weight], ids=["lsq", "pact", "dorefa"])
def test_compiled_whole_it_gives_the_same(made):
    quantizer, x = made(3), TENSORS["normal"].clone().requires_grad_()
    quantizer.initialise(x.detach())
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    wanted = (x, *quantizer.parameters())
    expected, got = (torch.autograd.grad(each(x).square().sum(), wanted) for each in (quantizer, compiled))
    torch.testing.assert_close(got, expected)
    assert torch.equal(compiled(x), quantizer(x))


def in_place(graph):
    """The operations of a graph, and of those inside it, that change a tensor in place."""
    modules = dict(graph.named_modules()).values()
    nodes = [node for module in modules if isinstance(module, torch.fx.GraphModule) for node in module.graph.nodes]
    names = [str(getattr(node.target, "__name__", node.target)) for node in nodes if node.op.startswith("call")]
    return [name for name in names if name.endswith("_") and not name.endswith("__") and name != "and_"]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("made", [LSQ().weight, LSQ().activation, PACT().activation, DoReFa().weight, Uniform().weight])
def test_nothing_is_changed_in_place_where_it_is_compiled(made, bits):
    """PyTorch 2.11 loses the gradient of an autograd function whose forward ends with such an operation."""
    quantizer, x, graphs = made(bits), TENSORS["normal"].clone().requires_grad_(), []
    quantizer.initialise(x.detach())

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compile(quantizer, backend=keep, fullgraph=True)(x)
    assert graphs
    assert [name for graph in graphs for name in in_place(graph)] == []


@pytest.mark.parametrize(
    "layout", [LAYOUTS["contiguous"], LAYOUTS["channels last"]], ids=["contiguous", "channels last"]
)
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_coarse_grids_stay_in_bfloat16(bits, layout):
    """As the same numbers in float64, but for roundings to 8 significant bits."""
    generator = torch.Generator().manual_seed(bits)
    x = layout(torch.randn(16, 8, 12, 12, generator=generator).relu()).bfloat16().requires_grad_()
    grad = layout(torch.randn(x.shape, generator=generator) + 0.2).bfloat16()
    grid = torch.tensor([0.1371 * 16 / 2**bits], requires_grad=True), torch.zeros(1), torch.tensor([2.0**bits - 1])
    y = fake_quantize(x, *grid)
    assert y.dtype == torch.bfloat16
    codes = (y.detach().double() / grid[0].detach()).round()
    torch.testing.assert_close(y.double(), codes * grid[0].detach(), rtol=2**-8, atol=0)
    ratio = x.detach().double() / grid[0].detach()
    inside = ratio <= grid[2]
    assert ((codes - ratio).abs()[inside] <= 0.5 + ratio[inside] * 2**-7).all()
    got = torch.autograd.grad(y, (x, grid[0]), grad)
    by_scale = torch.where(inside, codes - ratio, codes)
    assert torch.equal(got[0], grad * inside)
    noise = (grad.double() * by_scale).square().sum().sqrt()
    assert abs(float(got[1] - (grad.double() * by_scale).sum())) < 0.2 * float(noise)


@pytest.mark.parametrize("bits", [6, 8])
def test_fine_grids_are_widened_from_bfloat16(bits):
    quantizer, x = LSQ().activation(bits), torch.rand(1000).bfloat16().requires_grad_()
    quantizer.initialise(x.detach().float())
    y = quantizer(x)
    assert y.dtype == torch.float32 and torch.equal(y, quantizer(x.detach().float()))
    assert any(saved.data_ptr() == x.data_ptr() for saved in y.grad_fn.saved_tensors)  # no copy is kept
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [2, 8])
def test_networks_of_short_numbers_stay_so(bits, dtype):
    weight, images = torch.randn(4, 30).to(dtype).requires_grad_(), torch.rand(9, 30).to(dtype).requires_grad_()
    for quantizer, x in ((LSQ().weight(bits), weight), (LSQ().activation(bits), images)):
        quantizer.initialise(x.detach())
        y = quantizer.to(dtype)(x)
        assert y.dtype == dtype
        y.sum().backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_balanced_weights_have_no_code_at_zero(bits):
    quantizer, weight = LSQ(balanced_bits=2).weight(bits), torch.randn(4, 200)
    quantizer.initialise(weight)
    codes = sorted(set(quantizer.codes(weight)[0].flatten().tolist()))
    assert codes == ([-4.0, -3, -2, -1, 0, 1, 2, 3] if bits == 3 else [[-0.5, 0.5], [-1.5, -0.5, 0.5, 1.5]][bits - 1])


def test_balanced_weights_are_nearer_at_two_bits():
    """Four levels around zero leave 0.119 σ² of a normal distribution (Max, 1960, Table II), −2 … 1 more."""
    weight = torch.randn(1, 100_000)
    (balanced,), (published,) = (weight_errors([weight], LSQ(balanced_bits=b), [2]).values() for b in (2, 0))
    assert balanced / weight.numel() == pytest.approx(0.1188, rel=0.03)
    assert published > 1.2 * balanced


def test_sparse_weights_keep_their_zeros():
    weight = torch.randn(4, 100) * (torch.arange(100) % 2)
    quantizer = LSQ().weight(2)
    quantizer.initialise(weight)
    assert not quantizer(weight)[weight == 0].any()
    assert weight_errors([weight], LSQ(), [2]) == weight_errors([weight], LSQ(balanced_bits=0), [2])


def test_balanced_width_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^balanced_bits=9 is out of range: give 0 to 8"):
        LSQ(balanced_bits=9)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_nan_is_not_hidden(bits):
    quantizer = LSQ().activation(bits)
    quantizer.initialise(torch.rand(9))
    assert quantizer(torch.tensor([0.5, float("nan")])).isnan().tolist() == [False, True]


def draws(names, kinds=("weight", "activation")):
    return st.tuples(
        st.integers(0, 2**31),
        st.sampled_from(names),
        st.sampled_from(kinds),
        st.sampled_from(BIT_WIDTHS),
        st.sampled_from(["normal", "positive", "heavy tails"]),
        st.floats(2**-10, 2**10, width=32),
    )


def made(draw):
    """(quantiser, x, what it rounds: x or tanh x, its grid, which values it keeps) in float64, from a draw."""
    seed, name, kind, bits, shape, size = draw
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    x = {"normal": x, "positive": x.abs(), "heavy tails": x**3}[shape]
    quantizer = getattr(QUANTIZERS[name], kind)(bits).double()
    quantizer.initialise(x)
    seen = x.tanh() if isinstance(quantizer, SquashedQuantizer) else x
    grid = tuple(part.detach() for part in quantizer.grid(seen))
    return quantizer, x, seen, grid, quantizer.is_large(seen) & quantizer.keeps_large


@many
@given(draws(list(QUANTIZERS)))
def test_every_quantiser_rounds_to_its_grid(draw):
    quantizer, x, seen, (scale, low, high), kept = made(draw)
    y = quantizer(x).detach()
    assert torch.equal(y[kept], x[kept])
    assert torch.equal(fake_quantize(y, scale, low, high)[~kept], y[~kept])  # idempotent
    inside = (seen >= low * scale) & (seen <= high * scale)
    assert ((y - seen).abs() <= scale / 2 * (1 + 1e-9))[inside & ~kept].all()
    points = (low + torch.arange(2.0**quantizer.bits)[:, None, None, None]) * scale
    assert torch.equal(fake_quantize(points, scale, low, high), points.expand_as(points * scale))
    assert (high - low == 2**quantizer.bits - 1).all()


@many
@given(draws(["lsq", "lsq per tensor", "uniform", "uniform percentile", "dorefa", "pact"], ["weight"]))
def test_symmetric_grids(draw):
    quantizer, _, seen, (scale, low, high), _ = made(draw)
    lowest = {1: -0.5}.get(quantizer.bits, -(2.0 ** (quantizer.bits - 1)))
    assert ((low == lowest) | (low == -high)).all()
    inner = seen.clamp(-high * scale, high * scale)
    torch.testing.assert_close(fake_quantize(-inner, scale, low, high), -fake_quantize(inner, scale, low, high))


@many
@given(draws(list(QUANTIZERS)))
def test_every_gradient_is_that_of_the_written_out_formula(draw):
    """Autograd on y = s·(c + (round c − c)'), c = clip(x/s), the primed part held constant; PACT's y = clip(x)."""
    quantizer, x, _, (scale, low, high), kept = made(draw)
    x.requires_grad_()
    learned = list(quantizer.parameters())
    step = learned[0].detach().clone().requires_grad_() if learned else None
    seen = x.tanh() if isinstance(quantizer, SquashedQuantizer) else x
    if isinstance(quantizer, LearnedClip):
        clipped = torch.minimum(torch.maximum(x, low * (step / high)), step)
        expected = clipped + (rounded(clipped / scale, low) * scale - clipped).detach()
    else:
        s = step if isinstance(quantizer, LearnedStep) else scale
        clipped = (seen / s).clamp(low, high)
        expected = s * (clipped + (rounded(clipped, low) - clipped).detach())
    expected = torch.where(kept, x, expected)
    ratio = (seen / scale).detach()
    at_an_end = ((ratio - low).abs() < 1e-9) | ((ratio - high).abs() < 1e-9)  # rounding decides there
    grad = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape) * ~at_an_end
    got = torch.autograd.grad(quantizer(x), (x, *learned), grad)
    wanted = torch.autograd.grad(expected, (x, *([step] if learned else [])), grad)
    if isinstance(quantizer, LearnedStep):
        sharing = x.numel() / step.numel() / (1 if quantizer.symmetric else len(x))
        largest = max(2 ** (quantizer.bits - 1) - 1, 1) if quantizer.symmetric else 2**quantizer.bits - 1
        wanted = (wanted[0], wanted[1] / (sharing * largest) ** 0.5)  # 1902.08153, §2.2
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bits", BIT_WIDTHS)
@each_quantizer
def test_outputs_stand_on_a_grid_of_b_bits(quantizer, bits, name):
    x = TENSORS[name]
    for kind, channels in (("weight", len(x)), ("activation", 1)):
        made = getattr(quantizer, kind)(bits)
        made.initialise(x)
        y = made(x)
        codes, scale, low = made.codes(x)
        large = made.is_large(x) & made.keeps_large
        assert torch.equal(torch.where(large, x, codes * scale), y)
        y = torch.where(large, codes * scale, y)
        assert y.isfinite().all()
        steps = codes - low
        assert ((steps >= 0) & (steps < 2**bits) & (steps == steps.round())).all()
        if channels == 1 or scale.numel() > 1:
            assert all(len(row.unique()) <= 2**bits for row in y.reshape(channels, -1))
        error, largest = (y - x).abs().max(), x.abs().max()
        assert error <= largest + 1e-12  # never worse than zeroing


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if "percentile" not in name])  # they clip at any width
def test_errors_fall_with_the_width(name):
    errors = weight_errors([TENSORS["normal"] / 10, TENSORS["positive"] / 10], QUANTIZERS[name])
    assert list(errors) == list(BIT_WIDTHS)
    assert all(errors[bits + 1] < errors[bits] for bits in BIT_WIDTHS[:-1])


@pytest.mark.parametrize("bits", BIT_WIDTHS[1:])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weight_errors_of_minmax_in_closed_form(bits, per_channel):
    weights = [TENSORS["normal"], TENSORS["positive"]]
    expected = 0.0
    for weight in weights:
        rows = weight.double().numpy().reshape(len(weight) if per_channel else 1, -1)
        half = 2 ** (bits - 1)
        step = np.maximum(-rows.min(1, keepdims=True) / half, rows.max(1, keepdims=True) / (half - 1))
        expected += ((np.clip(np.rint(rows / step), -half, half - 1) * step - rows) ** 2).sum()
    errors = weight_errors(weights, Uniform("minmax", per_channel=per_channel), [bits])
    assert errors == {bits: pytest.approx(expected, rel=1e-3)}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_squares_range_is_no_worse_than_minmax(bits):
    (mse,), (minmax,) = (weight_errors([TENSORS["normal"]], Uniform(r), [bits]).values() for r in ("mse", "minmax"))
    assert mse <= minmax


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(
    ("made", "shape", "sharing", "largest"),
    [
        (LSQ().weight, (5, 3, 3, 3), 27, lambda bits: 2 ** (bits - 1) - 1),
        (LSQ(per_channel=False).weight, (5, 3, 3, 3), 135, lambda bits: 2 ** (bits - 1) - 1),
        (LSQ().activation, (5, 3, 3, 3), 27, lambda bits: 2**bits - 1),
    ],
    ids=["per channel", "per tensor", "activation"],
)
def test_lsq_step_gradient(made, shape, sharing, largest, bits):
    """The gradient is scaled by 1/√(N·Q_P), N weights of the step or features of a sample (1902.08153, §2.2)."""
    x = torch.randn(shape)
    quantizer = made(bits)
    quantizer.initialise(x)
    quantizer(x).sum().backward()
    codes, scale, _ = quantizer.codes(x)
    _, low, high = quantizer.grid(x)
    ratio = x / scale
    by_step = torch.where((ratio >= low) & (ratio <= high), codes - ratio, codes).sum_to_size(scale.shape)
    expected = by_step.detach() / (sharing * largest(bits)) ** 0.5
    torch.testing.assert_close(quantizer.scale.grad, expected, rtol=1e-4, atol=1e-5)


def test_fixed_activation_range_ignores_later_data():
    quantizer = Uniform().activation(4)
    quantizer.initialise(torch.rand(100))
    before = quantizer(torch.linspace(0, 1, 20))
    quantizer(torch.rand(100) * 9)
    assert torch.equal(quantizer(torch.linspace(0, 1, 20)), before)


def test_unknown_range_is_refused():
    with pytest.raises(ValueError, match=r"^weight_range='max'.*minmax, mse, percentile"):
        Uniform(weight_range="max")


@pytest.mark.parametrize("percentile", [50, 100.1, float("nan")])
def test_percentile_out_of_range(percentile):
    with pytest.raises(ValueError, match=r"^percentile"):
        Uniform(percentile=percentile)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("percentile", "left_out"), [(100, 0), (99, 1), (90, 10)])
def test_percentile_leaves_out_the_outermost_values(percentile, left_out, per_channel, symmetric):
    """The grid spans what is left of 100 values a channel, in NumPy's sorting, and is no wider than it must be."""
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(5))
    quantizer = Uniform("percentile", per_channel=per_channel, symmetric=symmetric, percentile=percentile).weight(8)
    quantizer.initialise(x)
    scale, low, high = (part.numpy() for part in quantizer.grid(x))
    rows = np.sort(x.numpy() if per_channel else x.numpy().reshape(1, -1))
    left_out *= rows.shape[1] // 100
    least, most = rows[:, [left_out]], rows[:, [-1 - left_out]]
    assert (low * scale <= least + 1e-6).all() and (high * scale >= most - 1e-6).all()
    assert np.allclose(np.maximum(least / low, most / high), scale, rtol=1e-5)


def test_percentile_of_activations_forgets_an_outlier():
    x = torch.cat([torch.rand(1999, generator=torch.Generator().manual_seed(6)), torch.tensor([1e6])])
    quantizer = Uniform(activation_range="percentile").activation(4)
    quantizer.initialise(x)
    assert float(quantizer(x).max()) == pytest.approx(1, abs=0.01)


def test_percentile_of_mostly_zeros_keeps_the_others():
    x = torch.zeros(10_000)
    x[0] = 1.0
    quantizer = Uniform(activation_range="percentile").activation(4)
    quantizer.initialise(x)
    assert float(quantizer(x).max()) == 1.0


@few
@given(st.integers(0, 2**31), st.sampled_from(["lsq", "uniform", "lsq per tensor", "uniform per tensor"]))
def test_one_bit_weights_are_those_of_binary_weight_networks(seed, name):
    """sign(w)·mean|w| has the least squared error, Σw² − n·mean|w|² (BWN, 1603.05279, eq. 6)."""
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    rows = weight.reshape(1, -1) if "tensor" in name else weight
    quantizer = QUANTIZERS[name].weight(1)
    quantizer.initialise(weight)
    expected = (rows.sign() * rows.abs().mean(1, keepdim=True)).reshape(weight.shape)
    torch.testing.assert_close(quantizer(weight).detach(), expected)


def test_one_bit_dorefa_weights():
    """±mean of the magnitudes (1606.06160, eq. 7), here of the squashed weights."""
    weight = TENSORS["normal"]
    quantizer = DoReFa().weight(1)
    quantizer.initialise(weight)
    torch.testing.assert_close(quantizer(weight), weight.sign() * weight.tanh().abs().mean())


@pytest.mark.parametrize(
    ("x", "expected"),
    [([0.0, 0.1, 2.0], [0.0, 0.0, 2.0]), ([-0.1, 0.3, 2.0], [0.0, 0.0, 2.0]), ([-2.0, 0.1, 2.0], [-2.0, 2.0, 2.0])],
    ids=["never negative", "nearly so", "both signs"],
)
def test_one_bit_activations(x, expected):
    quantizer = Uniform(activation_range="minmax").activation(1)
    quantizer.initialise(torch.tensor(x))
    torch.testing.assert_close(quantizer(torch.tensor(x)), torch.tensor(expected), atol=0.1, rtol=0)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_dorefa_weights_in_closed_form(bits):
    """2·quantise_k(½ + tanh(w) / (2 max|tanh(w)|)) − 1 (1606.06160, eq. 9), times max|tanh(w)|."""
    weight = TENSORS["normal"].double()
    quantizer = DoReFa().weight(bits)
    quantizer.initialise(weight)
    steps, squashed = 2**bits - 1, np.tanh(weight.numpy())
    levels = np.rint(steps * (0.5 + squashed / (2 * np.abs(squashed).max()))) / steps
    np.testing.assert_allclose(quantizer(weight), (2 * levels - 1) * np.abs(squashed).max(), atol=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_gradients(bits):
    """∂y/∂x = 1 between 0 and α, ∂y/∂α = 1 above α (1805.06085, eq. 3)."""
    quantizer = PACT().activation(bits)
    quantizer.initialise(torch.tensor([0.0, 2.0]))
    x = torch.tensor([-1.0, 0.3, 1.9, 2.5, 7.0], requires_grad=True)
    y = quantizer(x)
    y.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert y[3:].tolist() == [2.0, 2.0]
    assert x.grad.tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    assert quantizer.alpha.grad.tolist() == [pytest.approx(24.0)]


def test_pact_keeps_the_sign_of_images():
    quantizer = PACT().activation(8)
    quantizer.initialise(torch.tensor([-2.0, 1.0]))
    torch.testing.assert_close(
        quantizer(torch.tensor([-3.0, -1.0, 1.0])), torch.tensor([-2.0, -1.0, 1.0]), atol=0.02, rtol=0
    )


@few
@given(st.integers(0, 2**31), st.integers(1, 8), st.sampled_from([0.0, 1.0, 10.0, 50.0]), st.booleans())
def test_value_aware_keeps_the_largest(seed, bits, percent, positive):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    x = x.abs() if positive else x
    quantizer = RVQuant(percent).weight(bits)
    quantizer.initialise(x)
    order = x.abs().argsort(descending=True)
    kept, others = order[: round(2 * percent)], order[round(2 * percent) :]
    y = quantizer(x)
    assert torch.equal(y[kept], x[kept])
    scale, low, high = quantizer.grid(x)
    assert float(scale * high) == pytest.approx(float(x[others].abs().max()), rel=1e-6)
    on_grid = others[~quantizer.is_large(x)[others]]  # rounding of T may let the one value at T pass
    assert len(on_grid) >= len(others) - 1
    assert torch.equal(y[on_grid], fake_quantize(x[on_grid], scale, low, high))


@pytest.mark.parametrize("percent", [-1, 51, float("nan")])
def test_share_of_large_values_out_of_range(percent):
    with pytest.raises(ValueError, match=r"^large_percent"):
        RVQuant(percent)
