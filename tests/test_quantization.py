"""Quantisers: properties of the grid, and closed forms for gradients and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq.quantization import LSQ, PACT, DoReFa, RVQuant, Uniform, fake_quantize, weight_errors

WIDTHS = range(2, 9)
QUANTIZERS = {
    "lsq": LSQ(),
    "lsq per tensor": LSQ(per_channel=False),
    "uniform": Uniform(),
    "uniform minmax": Uniform("minmax", "minmax"),
    "uniform per tensor": Uniform(per_channel=False),
    "uniform asymmetric": Uniform(symmetric=False),
    "uniform asymmetric minmax per tensor": Uniform("minmax", "minmax", per_channel=False, symmetric=False),
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
grids = st.tuples(
    st.integers(0, 2**31), st.integers(2, 8), st.floats(2**-12, 1000, width=32), st.booleans(), st.floats(0.1, 3.0)
)
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def drawn(grid):
    """(x, scale, low, high) from a Hypothesis draw; x reaches beyond the range for the larger spreads."""
    seed, bits, scale, signed, spread = grid
    low = -(2 ** (bits - 1)) if signed else 0
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * scale * 2 ** (bits - 1) * spread
    return x, *(torch.tensor([float(value)]) for value in (scale, low, low + 2**bits - 1))


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
    points = torch.arange(int(low), int(high) + 1) * scale
    assert torch.equal(fake_quantize(points, scale, low, high), points)


@few
@given(grids)
def test_straight_through_gradients(grid):
    x, scale, low, high = drawn(grid)
    x, scale = x.double().requires_grad_(), scale.double().requires_grad_()
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64)
    (fake_quantize(x, scale, low, high) * weights).sum().backward()
    ratio = (x / scale).detach().numpy()
    inside = (ratio >= float(low)) & (ratio <= float(high))
    by_scale = np.where(inside, np.rint(ratio) - ratio, np.clip(ratio, float(low), float(high)))  # 1902.08153, eq. 3
    np.testing.assert_array_equal(x.grad.numpy(), weights.numpy() * inside)
    np.testing.assert_allclose(scale.grad.numpy(), [(weights.numpy() * by_scale).sum()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bits", WIDTHS)
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
        assert error <= largest + torch.finfo(x.dtype).tiny  # never worse than zeroing


@each_quantizer
def test_errors_fall_with_the_width(quantizer):
    errors = weight_errors([TENSORS["normal"] / 10, TENSORS["positive"] / 10], quantizer)
    assert list(errors) == list(WIDTHS)
    assert all(errors[bits + 1] < errors[bits] for bits in range(2, 8))


@pytest.mark.parametrize("bits", WIDTHS)
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
    with pytest.raises(ValueError, match=r"quantizer\.weight_range='max'.*minmax or mse"):
        Uniform(weight_range="max")


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
@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from([0.0, 1.0, 10.0, 50.0]), st.booleans())
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
    with pytest.raises(ValueError, match=r"quantizer\.large_percent"):
        RVQuant(percent)
