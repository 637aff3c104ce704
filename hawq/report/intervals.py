"""How sure an accuracy is: intervals from the number of test images, and of two networks on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit  # Student's quantile; scipy.stats takes half a second to import

from hawq.records import Difference, Measured

_Z = 1.959963984540054  # 97.5 % of the standard normal distribution lies below


def wilson(accuracy: float, num_images: int) -> tuple[float, float]:
    """95 % score interval of an accuracy, all in percent (Wilson 1927, JASA 22, 209-212).

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), which stays within 0 … 100 and has a width for 0 and 100 too.
    Raises ValueError for no images or an accuracy that is none.
    """
    if num_images < 1 or not 0.0 <= accuracy <= 100.0:
        raise ValueError(f"an interval needs images and an accuracy of 0 to 100, not {num_images} and {accuracy}")
    share, z2 = accuracy / 100.0, _Z**2 / num_images
    middle = share + z2 / 2
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    low, high = (max(0.0, min(1.0, (middle + sign * half) / (1 + z2))) for sign in (-1, 1))
    return 100.0 * min(low, share), 100.0 * max(high, share)


def paired_difference(mine: Measured, other: Measured) -> Difference | None:
    """Accuracy of one network minus the other's, both measured on the same images; None where these are not known.

    Only images on which they disagree count. The interval is Bonett and Price's (2012, J. Educ. Behav. Stat. 37,
    479-488): Wald's with one more disagreement each way, so that it has a width where there is none.
    """
    if mine.wrong is None or other.wrong is None or not mine.num_images or mine.num_images != other.num_images:
        return None
    count, my_wrong, other_wrong = mine.num_images, set(mine.wrong), set(other.wrong)
    better, worse = len(other_wrong - my_wrong), len(my_wrong - other_wrong)
    up, down = (better + 1) / (count + 2), (worse + 1) / (count + 2)
    half = 100.0 * _Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    value, middle = 100.0 * (better - worse) / count, 100.0 * (up - down)
    low, high = max(-100.0, middle - half), min(100.0, middle + half)
    return Difference(value, min(low, value), max(high, value), count)


def agreement(mine: Measured, other: Measured) -> float | None:
    """Share of the test images in percent that both networks put into the same class, right or wrong.

    None where their images or classes are not known, or not the same in number.
    """
    if mine.chosen is None or other.chosen is None or not mine.num_images or mine.num_images != other.num_images:
        return None
    one, two = (dict(zip(found.wrong or (), found.chosen or (), strict=True)) for found in (mine, other))
    apart = sum(one.get(image) != two.get(image) for image in one.keys() | two.keys())
    return 100.0 * (mine.num_images - apart) / mine.num_images


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half the 95 % interval of the mean of N values, t_(N−1) · σ/√N (Student 1908); NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
