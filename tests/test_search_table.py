"""The table of searches: which plans are compared, and intervals of differences over images and seeds."""

import numpy as np
import pytest

from hawq.report.search_table import paired_gain, searches_table


def record(search, evaluations, seed, values, accuracy=90.0):
    values = [float(value) for value in values]
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    found = {"search": search, "evaluations": evaluations, "seed": seed, "value": mean, "other_values": values}
    return {**found, "other_kl": mean, "other_kl_error": error, "other_accuracy": accuracy}


def test_a_single_plan_has_the_paired_t_interval():
    """Against a worked example: differences 1, 2, 3, 4 have mean 2.5, error 0.6455, t₃ = 3.1824."""
    group = [record("random", 3, 0, [2, 4, 6, 8])]
    gap, half = paired_gain(group, [record("optimum", 1, 0, [1, 2, 3, 4])])
    assert gap == pytest.approx(2.5)
    assert half == pytest.approx(3.182446 * 0.6454972, rel=1e-5)


def test_a_constant_shift_of_every_seed_counts_as_chance_of_the_seeds():
    """Two seeds at 1 and 3 above the reference: σ = √2, t₁ = 12.7062, N images add nothing."""
    reference = [record("optimum", 1, 0, [5, 6, 9])]
    group = [record("random", 3, seed, [5 + shift, 6 + shift, 9 + shift]) for seed, shift in enumerate((1, 3))]
    assert paired_gain(group, reference) == pytest.approx((2.0, 12.706205), rel=1e-6)


def test_the_interval_covers_what_it_says():
    """Seeds with effects of their own on every image: at least 95 % of 400 draws hold the true difference."""
    draws, covered = np.random.default_rng(0), 0
    for _ in range(400):
        base, seeds = draws.exponential(1.0, 200), draws.normal(0.3, 0.1, 5)
        values = base + seeds[:, None] + draws.normal(0, 0.5, (5, 200))
        group = [record("random", 3, seed, row) for seed, row in enumerate(values)]
        gap, half = paired_gain(group, [record("optimum", 1, 0, base)])
        covered += abs(gap - 0.3) <= half
    assert 0.93 <= covered / 400 <= 0.99


@pytest.mark.parametrize(("mine", "theirs"), [([1, 2], [1, 2, 3]), ([1], [1])])
def test_other_images_are_refused(mine, theirs):
    group, reference = ([{"other_values": values}] for values in (mine, theirs))
    with pytest.raises(ValueError, match="two or more of the same are needed"):
        paired_gain(group, reference)


def test_the_best_comes_first_and_the_reference_is_the_plan_of_the_fewest_evaluations():
    records = [
        record("random", 300, 0, [0.30, 0.42, 0.33]),
        record("refined from kl", 300, 0, [0.10, 0.20, 0.32]),
        record("refined from kl", 100, 0, [0.10, 0.21, 0.31]),
        *(record("HAQ", 100, seed, [0.2 + seed, 0.3, 0.4], accuracy=None) for seed in (0, 1, 2)),
    ]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in searches_table(records, "refined from kl").splitlines()
    ]
    assert rows[0][-2:] == ["− refined from kl", "accuracy %"]
    assert [row[:3] for row in rows[2:]] == [
        ["refined from kl", "100", "1"],
        ["refined from kl", "300", "1"],
        ["random", "300", "1"],
        ["HAQ", "100", "3"],
    ]
    assert rows[2][-2] == "–"
    assert rows[4][-2].startswith("+0.1433 ± ") and rows[5][-1] == "–"


def test_without_the_reference_nothing_is_compared():
    rows = searches_table([record("random", 3, 0, [1, 2]), record("HAQ", 3, 0, [1, 3])], "refined from kl").splitlines()
    assert "refined" not in rows[0] and all(row.count("|") == 8 for row in rows)
