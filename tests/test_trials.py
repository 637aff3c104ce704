"""Trials of whole plans against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hawq import find_blocks
from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.quantization import quantize
from hawq.records import FLOAT_BITS, BitPlan, Precision
from hawq.trials import Trials, paired


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


def parts(network: nn.Module):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    images = [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)) for n in (7, 5)
    ]
    return find_blocks(network, images[0][0][:1]), images, [images[0][0]]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_plan_is_measured_as_plain_pytorch_measures_it(network: nn.Module, temperature: float, bits: int) -> None:
    blocks, images, calibration = parts(network)
    precisions = {block.name: Precision(bits, 4) for block in blocks}
    found = Trials(network, blocks, images, calibration, temperature=temperature).measure(precisions)
    plan = BitPlan(precisions, "test", plan_cost(blocks, precisions))
    quantized = quantize(network, blocks, plan, calibration)
    inputs, labels = (torch.cat(parts) for parts in zip(*images, strict=True))
    with torch.no_grad():
        before, after = network(inputs).double(), quantized(inputs).double()
    target = (before / temperature).softmax(1)
    kl = nn.functional.kl_div((after / temperature).log_softmax(1), target, reduction="none").sum(1) * temperature**2
    torch.testing.assert_close(found.kl, kl, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        found.loss, nn.functional.cross_entropy(after, labels, reduction="none"), atol=1e-5, rtol=1e-5
    )
    assert found.accuracy == pytest.approx(100 * float((after.argmax(1) == labels).double().mean()))


def test_the_float_network_has_no_divergence_and_labels_are_not_needed(network: nn.Module) -> None:
    blocks, images, calibration = parts(network)
    trials = Trials(network, blocks, [(inputs, None) for inputs, _ in images], calibration)
    found = trials.measure({block.name: Precision(FLOAT_BITS, FLOAT_BITS) for block in blocks})
    assert float(trials.float.kl.abs().max()) == 0.0
    assert float(found.kl.max()) < 1e-9
    assert found.loss is None and found.hits is None and found.accuracy is None


def test_a_paired_difference_is_the_mean_with_its_standard_error() -> None:
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0])
    mean, error = paired(a, b)
    assert mean == pytest.approx(4 / 3)
    assert error == pytest.approx(torch.tensor([1.0, 0.0, 3.0]).std().item() / 3**0.5)
    with pytest.raises(ValueError, match="equal shapes"):
        paired(a, b[:2])


def test_what_cannot_be_measured_is_refused(network: nn.Module) -> None:
    blocks, images, calibration = parts(network)
    with pytest.raises(UserError, match="at least two images"):
        Trials(network, blocks, [(images[0][0][:1], None)], calibration)
    with pytest.raises(UserError, match="not finite"):
        Trials(network, blocks, [(images[0][0] * float("inf"), None)], calibration)
