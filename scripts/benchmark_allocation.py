"""The exact allocation, timed: `python scripts/benchmark_allocation.py [--instances 10] [--seconds 60]`.

54 and 200 blocks × 7 bit-widths × two limits (bits of the weights, BOPS), seeded: ours, PuLP with CBC, and listing all
assignments that are monotone in S. Needs PuLP, which nothing else here does: pip install pulp.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np

from hawq.allocation import IntegerProgram
from hawq.records import WEIGHTS, Block, BlockSensitivity, Estimate, Sensitivity
from hawq.report import markdown

BIT_WIDTHS = tuple(range(2, 9))


def make_instance(num_blocks: int, seed: int) -> tuple[Sensitivity, IntegerProgram]:
    """Sizes and MACs as in convolutional networks, λ over four decades, errors near n_i · 4^−b, two tight limits."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num_blocks):
        size = int(math.exp(rng.uniform(math.log(1e3), math.log(2e6))))
        block = Block(f"b{index}", (f"b{index}",), size, size * int(rng.choice([1, 4, 16, 49, 196, 784])), 1000)
        errors = sorted((size * 4.0**-bits * math.exp(rng.normal(0, 0.2)) for bits in BIT_WIDTHS), reverse=True)
        estimate = Estimate(float(10 ** rng.uniform(-2, 2)), 0.0, 1, True)
        rows.append(BlockSensitivity(block, estimate, dict(zip(BIT_WIDTHS, errors, strict=True))))
    bops = sum(row.block.macs or 0 for row in rows) * 4  # at one weight bit
    return Sensitivity(tuple(rows), "benchmark", 1, 0.0), IntegerProgram(3.44, "average_bits", {"bops": 3.8 * bops})


def omega(sensitivity: Sensitivity, block: Block, bits: int) -> float:
    """Ω of HAWQ."""
    return sensitivity.predicted("eigenvalue", block, WEIGHTS, bits).value


def ours(sensitivity: Sensitivity, allocator: IntegerProgram, seconds: float) -> float:
    """Σ Ω of our plan, proven to be the least."""
    plan = allocator.allocate(sensitivity)
    assert plan.objective is not None and plan.gap is not None and plan.gap < 1e-9, "not proven"
    return plan.objective


def with_pulp(sensitivity: Sensitivity, allocator: IntegerProgram, seconds: float) -> float:
    """Σ Ω of the same program, as HAWQ-V3 states it in PuLP, solved by CBC to a gap of zero."""
    import pulp

    choices = allocator.problem(sensitivity.blocks, None).choices(lambda b, p: omega(sensitivity, b, p.weight_bits))
    program = pulp.LpProblem("bits", pulp.LpMinimize)
    taken = [pulp.LpVariable(f"x{index}", cat="Binary") for index in range(len(choices.owner))]
    program += pulp.lpSum(float(score) * x for score, x in zip(choices.scores, taken, strict=True))
    for members in np.split(np.arange(len(taken)), choices.starts()[1:]):
        program += pulp.lpSum(taken[index] for index in members) == 1
    for costs, limit in zip(choices.costs, choices.limits, strict=True):
        program += pulp.lpSum(float(cost / limit) * x for cost, x in zip(costs, taken, strict=True)) <= 1
    program.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0, timeLimit=seconds))
    if program.sol_status != pulp.LpSolutionOptimal:
        raise TimeoutError
    return float(pulp.value(program.objective))


def by_listing(sensitivity: Sensitivity, allocator: IntegerProgram, seconds: float) -> float:
    """Σ Ω of the best of all assignments that fall along S, tried one after the other (HAWQ-V2's search)."""
    blocks = sorted(sensitivity.blocks, key=lambda block: -sensitivity.rank("eigenvalue", block))
    limits = allocator.problem(sensitivity.blocks, None).limits
    scores = np.array([[omega(sensitivity, block, bits) for bits in BIT_WIDTHS[::-1]] for block in blocks])
    sizes = np.array([[block.num_weights * bits for bits in BIT_WIDTHS[::-1]] for block in blocks])
    bops = np.array([[(block.macs or 0) * bits * 4 for bits in BIT_WIDTHS[::-1]] for block in blocks])
    best, places, deadline = math.inf, np.arange(len(blocks)), time.perf_counter() + seconds
    for count, list_ in enumerate(combinations_with_replacement(range(len(BIT_WIDTHS)), len(blocks))):
        columns = np.array(list_)
        fits = sizes[places, columns].sum() <= limits[0].total and bops[places, columns].sum() <= limits[1].total
        if fits:
            best = min(best, float(scores[places, columns].sum()))
        if count % 1000 == 0 and time.perf_counter() > deadline:
            raise TimeoutError
    return best


def timed(
    method: Callable[..., float], instance: tuple[Sensitivity, IntegerProgram], seconds: float
) -> tuple[float, float]:
    """(milliseconds, Σ Ω) of a method, both infinite when the time is up."""
    started = time.perf_counter()
    try:
        found = method(*instance, seconds)
    except TimeoutError:
        return math.inf, math.inf
    return 1e3 * (time.perf_counter() - started), found


def main() -> None:
    """Prints the table of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10, help="seeded instances of each size")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of each solve by the others")
    options = parser.parse_args()
    try:
        import pulp  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            "error: this benchmark compares with PuLP, which is not installed: pip install pulp"
        ) from error
    rows = []
    for num_blocks in (54, 200):
        instances = [make_instance(num_blocks, seed) for seed in range(options.instances)]
        timed(ours, instances[0], options.seconds)  # the first call loads libraries
        best = [ours(*instance, options.seconds) for instance in instances]
        lists = f"{math.comb(num_blocks + len(BIT_WIDTHS) - 1, len(BIT_WIDTHS) - 1):.1e} monotone lists"
        for name, method, share in (
            ("ours", ours, instances),
            ("PuLP/CBC", with_pulp, instances),
            (f"listing {lists}", by_listing, instances[:1]),
        ):
            results = [timed(method, instance, options.seconds) for instance in share]
            times = [milliseconds for milliseconds, _ in results]
            worse = [found / least - 1 for (_, found), least in zip(results, best, strict=False) if found < math.inf]
            done = f"{len(worse)} of {len(results)}"
            above = f"{max(worse):.1e}" if worse else "–"
            rows.append((num_blocks, name, done, f"{np.median(times):.0f}", f"{max(times):.0f}", above))
    print(markdown(("blocks", "method", f"done in {options.seconds:g} s", "median ms", "worst ms", "above ours"), rows))


if __name__ == "__main__":
    main()
