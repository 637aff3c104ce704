"""The exact search by HiGHS (SciPy's integer programming), with limits that hold exactly."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hawq.allocation.choices import Choices, Solution

ROW = 1e4  # what HiGHS sees for 1, so that its feasibility tolerance of 1e-6 is far below any real excess
TIME_IS_UP, NOTHING_FITS = 1, 2  # SciPy's status


def one_each(choices: Choices) -> Any:
    """Sparse (groups, M): row g sums the options of group g."""
    from scipy.sparse import csr_array

    size = len(choices.owner)
    return csr_array((np.ones(size), (choices.owner, np.arange(size))), shape=(choices.num_groups, size))


def settle(choices: Choices, unit: float, gap: float, deadline: float) -> Solution | None:
    """The optimum by HiGHS, within the relative `gap`; None when nothing fits.

    HiGHS may exceed a limit by its tolerance: such a solution is cut off, and the search goes on.

    Args:
        choices: the problem.
        unit: HiGHS sees the scores in hundredths of it, because its own tolerances are absolute.
        gap: relative distance from the optimum at which it stops.
        deadline: on the clock of `time.monotonic`.

    Raises:
        TimeoutError: the deadline passed before there was a proven answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    least = choices.least(choices.scores)
    above = (choices.scores - least[choices.owner]) * (100 / unit)
    rows, upper = csr_array(choices.costs * ROW), choices.limits * ROW
    while (left := deadline - time.monotonic()) > 0:
        with _quiet():
            result = milp(
                above,
                integrality=np.ones(len(above)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(one_each(choices), 1, 1), LinearConstraint(rows, -np.inf, upper)],
                options={"mip_rel_gap": gap, "time_limit": left},
            )
        if result.x is None:
            if result.status == TIME_IS_UP:
                break
            return None
        chosen = choices.starts() + [int(part.argmax()) for part in np.split(result.x, choices.starts()[1:])]
        if choices.allow(chosen):
            return Solution(chosen, choices.score(chosen), float(least.sum()) + result.mip_dual_bound * unit / 100)
        taken = csr_array((np.ones(len(chosen)), (np.zeros(len(chosen), int), chosen)), shape=(1, len(above)))
        rows, upper = vstack([rows, taken], "csr"), np.append(upper, len(chosen) - 1)
    raise TimeoutError


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses lines that HiGHS prints to standard output whatever its options say."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C's own buffer, which still holds them
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
