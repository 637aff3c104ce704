"""What ranges are chosen from: a fair sample of whatever enters a layer, and its true extremes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import build, samples
from sensitivities import plan_of
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hawq
from hawq.blocks import find_blocks
from hawq.errors import UserError
from hawq.quantization import LSQ, Uniform, activation_errors
from hawq.quantization.calibration import MOST_BATCHES, InputSample, input_batches

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "permuted": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "part of more": lambda x: torch.cat([x, x], 0)[: len(x)],
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    layout=st.sampled_from(sorted(LAYOUTS)),
    per_batch=st.integers(1, 40),
    batches=st.integers(1, 3),
    data=st.data(),
)
def test_an_outlier_is_in_the_range_whatever_the_layout(shape, layout, per_batch, batches, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    seen = [torch.randn(shape, generator=generator) for _ in range(batches)]
    place = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    seen[data.draw(st.integers(0, batches - 1))][place] = 100.0 * data.draw(st.sampled_from([-1, 1]))
    sample = InputSample(per_batch, seed=0)
    for x in seen:
        sample.add(LAYOUTS[layout](x))
    everything, found = torch.cat([x.reshape(-1) for x in seen]), sample.values_and_extremes()
    assert (found.min(), found.max()) == (everything.min(), everything.max())
    assert torch.isin(found, everything).all()
    assert len(sample.values()) <= sum(min(x.numel(), per_batch) for x in seen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(128, 197, 192), (64, 14, 14, 384), (128, 2048), (16, 384, 14, 14)], ids=str)
def test_every_channel_is_seen_alike(shape, layout):
    """Numbers of channels that stride over memory badly; the shares of channels are those of a fair draw."""
    axis = 1 if shape == (16, 384, 14, 14) else -1
    index = torch.arange(shape[axis], dtype=torch.float32)
    x = index.reshape(-1, *[1] * (len(shape) - 2)).expand(shape) if axis == 1 else index.expand(shape)
    sample = InputSample(100_000, seed=1)
    sample.add(LAYOUTS[layout](x) if layout != "contiguous" else x)
    counts = sample.values().long().bincount(minlength=shape[axis]).double()
    expected = 100_000 / shape[axis]
    spread = (counts - expected).square().mean() / expected  # 1 for independent draws
    assert 0.7 < spread < 1.3
    assert counts.min() > 0


def test_a_small_input_is_taken_whole_and_a_seed_repeats_the_draw():
    x = torch.randn(7, 5)
    whole, first, second, other = (InputSample(n, seed) for n, seed in ((35, 0), (20, 0), (20, 0), (20, 1)))
    for sample in (whole, first, second, other):
        sample.add(x)
    assert torch.equal(whole.values_and_extremes(), x.reshape(-1))
    assert torch.equal(first.values(), second.values())
    assert not torch.equal(first.values(), other.values())


def with_outlier(channels, outlier):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, channels), nn.Identity(), nn.Linear(channels, 3)).eval()
    with torch.no_grad():
        model[0].weight[outlier] *= 30
    return model


@pytest.mark.parametrize("quantizer", [LSQ(), Uniform(), Uniform("minmax", "minmax")], ids=repr)
@pytest.mark.parametrize(("rows", "channels", "outlier"), [(1000, 512, 1), (197 * 64, 64, 3), (1000, 768, 700)])
def test_calibration_on_many_rows_is_as_good_as_on_few(rows, channels, outlier, quantizer):
    model, x = with_outlier(channels, outlier), torch.randn(rows, 8)
    blocks = find_blocks(model, x)
    few = 200_000 // channels - 1

    def error(given):
        network = hawq.quantize(model, blocks, plan_of(blocks, 8, 8), [given], quantizer)
        return float((network(x) - model(x)).detach().norm() / model(x).detach().norm())

    assert error(x) < 1.3 * error(x[:few]) < 0.3


def test_activation_errors_see_every_channel():
    model, x = with_outlier(512, 1), torch.randn(1000, 8)
    blocks = find_blocks(model, x)
    (_, found), (_, expected) = (
        list(activation_errors(model, blocks, inputs, Uniform("minmax", "minmax"), [4]).values())
        for inputs in ([x], list(x.split(250)))  # the parts are small enough to be taken whole
    )
    assert found[4] == pytest.approx(expected[4], rel=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_the_layers_name(value):
    model, images = build("residual", torch.float32), samples(4, torch.float32)[0]
    blocks = find_blocks(model, images)
    images[2, 1, 3, 3] = value
    with pytest.raises(UserError, match="what enters stem is not finite"):
        hawq.quantize(model, blocks, plan_of(blocks, 4, 4), [images])


IMAGES, LABELS = samples(12, torch.float32)
PARTS = list(IMAGES.split(4))


class Endless(IterableDataset):
    def __iter__(self):
        return zip(itertools.cycle(IMAGES), itertools.cycle(LABELS), strict=True)


GIVEN = {
    "list": lambda: PARTS,
    "tuple": lambda: tuple(PARTS),
    "pairs": lambda: [(x, LABELS[:4]) for x in PARTS],
    "lists of two": lambda: [[x, LABELS[:4]] for x in PARTS],
    "generator": lambda: (x for x in PARTS),
    "loader of pairs": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "loader": lambda: DataLoader(IMAGES, batch_size=4),
}


@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
def test_any_form_of_calibration_batches_is_taken_once(make):
    model = build("residual", torch.float32)
    blocks = find_blocks(model, IMAGES)
    plan = plan_of(blocks, 3, 3)
    expected = hawq.quantize(model, blocks, plan, PARTS)(IMAGES)
    assert torch.equal(hawq.quantize(model, blocks, plan, make())(IMAGES), expected)


def test_a_tensor_is_one_batch():
    assert torch.equal(input_batches(IMAGES, torch.device("cpu"))[0], IMAGES)


def test_an_endless_stream_is_cut():
    assert len(input_batches(DataLoader(Endless(), batch_size=4), torch.device("cpu"))) == MOST_BATCHES


REFUSED = {
    "nothing": ([], "calibration is empty"),
    "an empty generator": (iter(()), "calibration is empty"),
    "an empty batch": ([IMAGES[:0]], r"shape \(0, 3, 6, 6\)"),
    "a number": ([torch.tensor(1.0)], r"shape \(\)"),
    "mappings": ([{"image": IMAGES, "label": LABELS}], "a mapping of image, label: give tensors"),
    "three": ([(IMAGES, LABELS, LABELS)], "a tuple of 3: give"),
    "no tensors": ([IMAGES.numpy()], "of type ndarray: give"),
}


@pytest.mark.parametrize(("calibration", "message"), REFUSED.values(), ids=REFUSED)
def test_other_forms_are_refused_in_one_sentence(calibration, message):
    model = build("residual", torch.float32)
    blocks = find_blocks(model, IMAGES)
    with pytest.raises(UserError, match=message):
        hawq.quantize(model, blocks, plan_of(blocks, 3, 3), calibration)
