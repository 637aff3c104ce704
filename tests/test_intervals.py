"""Intervals of accuracies, against SciPy, and against how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from hawq.evaluation import measured as evaluated
from hawq.records import Measured
from hawq.report import agreement, paired_difference, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (1, 1), (340, 360), (9173, 10_000), (38_000, 50_000)])
def test_wilson_is_scipys(right: int, images: int) -> None:
    low, high = wilson(100 * right / images, images)
    truth = binomtest(right, images).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * truth.low, 100 * truth.high), abs=1e-9)
    assert low <= 100 * right / images <= high


@pytest.mark.parametrize(("accuracy", "images"), [(50.0, 0), (-1.0, 10), (101.0, 10), (float("nan"), 10)])
def test_no_interval_of_nothing(accuracy: float, images: int) -> None:
    with pytest.raises(ValueError, match="an interval needs images"):
        wilson(accuracy, images)


def measured(hits: np.ndarray) -> Measured:
    return Measured(100 * float(hits.mean()), len(hits), tuple(np.flatnonzero(~hits).tolist()))


@pytest.mark.parametrize(("images", "seed"), [(50, 0), (360, 1), (2000, 2)])
def test_paired_difference_holds_in_95_of_100(images: int, seed: int) -> None:
    """Two networks that agree on most images: the true difference is known, the images are drawn again and again."""
    rng, held, widths = np.random.default_rng(seed), 0, []
    both, mine_alone, other_alone = 0.85, 0.04, 0.06  # shares of images; on the rest both are wrong
    for _ in range(400):
        draw = rng.random(images)
        mine = draw < both + mine_alone
        other = (draw < both) | ((draw >= both + mine_alone) & (draw < both + mine_alone + other_alone))
        found = paired_difference(measured(mine), measured(other))
        assert found is not None and found.low <= found.value <= found.high
        assert found.value == pytest.approx(100 * (mine.mean() - other.mean()))
        held += found.low <= 100 * (mine_alone - other_alone) <= found.high
        widths.append(found.high - found.low)
    assert 0.92 <= held / 400 <= 0.99
    single = wilson(100 * (both + mine_alone), images)
    assert np.mean(widths) < 1.5 * (single[1] - single[0])  # pairs know more than two intervals do


def test_difference_of_networks_that_agree_has_a_width() -> None:
    same = Measured(90.0, 10, (3,))
    found = paired_difference(same, same)
    assert found is not None and found.value == 0 and found.low < 0 < found.high and found.is_within_error


@pytest.mark.parametrize("other", [Measured(90.0), Measured(90.0, 10), Measured(90.0, 20, (1, 2))])
def test_other_images_are_not_compared(other: Measured) -> None:
    assert paired_difference(Measured(90.0, 10, (3,)), other) is None


@pytest.mark.parametrize("seed", range(20))
def test_agreement_is_the_share_of_equal_classes(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    images, kinds = 1 + seed * 7, 2 + seed % 5
    labels, mine, other = (torch.randint(kinds, (images,), generator=draw) for _ in range(3))
    found = agreement(evaluated(mine, labels), evaluated(other, labels))
    assert found == pytest.approx(100 * float((mine == other).float().mean()), abs=1e-4)
    assert agreement(evaluated(mine, labels), evaluated(mine, labels)) == 100


@pytest.mark.parametrize("other", [Measured(90.0), Measured(90.0, 10, (3,)), Measured(90.0, 20, (1, 2), (0, 0))])
def test_without_classes_no_agreement_is_stated(other: Measured) -> None:
    mine = Measured(90.0, 10, (3,), (1,))
    assert agreement(mine, other) is None and agreement(other, mine) is None
