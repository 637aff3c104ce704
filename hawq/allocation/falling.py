"""Assignments that never rise along a given order, with the least total score within one limit: dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawq.allocation.choices import Choices
from hawq.allocation.solver import minimise


@dataclass(frozen=True)
class Falling:
    """Blocks in an order along which columns never go left, except between blocks of the same level.

    Args:
        sizes, scores, seconds: (blocks, columns), what each option costs, scores, and scores in second place.
        levels: (blocks,), never falling; blocks of one level are free of each other.
        room: largest allowed Σ sizes; some assignment fits.
    """

    sizes: np.ndarray
    scores: np.ndarray
    seconds: np.ndarray
    levels: np.ndarray
    room: float

    def solve(self) -> np.ndarray:
        """(blocks,) the columns with the least Σ scores, and the least Σ seconds among these.

        Blocks of the last level that score nothing at all are left to `minimise`: only their seconds count.
        """
        last = np.flatnonzero(self.levels == self.levels[-1])
        flat = len(last) > 1 and not self.scores[last].any()
        ordered = len(self.levels) - len(last) if flat else len(self.levels)
        fronts, nodes = self._fronts(ordered)
        if flat:
            return self._with_flat(fronts, nodes, ordered)
        whole = _merged(fronts)
        return nodes.columns(int(whole.nodes[_ranks(whole.scores, whole.seconds).argmin()]))

    def _fronts(self, ordered: int) -> tuple[list[_Front], _Nodes]:
        """For each column the best prefixes of `ordered` blocks whose rightmost column it is.

        Only the Pareto front of size against (score, second) is kept, so that no list of assignments is ever made.
        """
        num_columns, nodes = self.sizes.shape[1], _Nodes()
        least = self.sizes.min(1)
        fronts = [_Front.start(), *[_Front.empty()] * (num_columns - 1)]
        for level in np.unique(self.levels[:ordered]):
            blocks = np.flatnonzero(self.levels[:ordered] == level)
            parts: list[list[_Front]] = [[] for _ in range(num_columns)]
            if len(blocks) == 1:
                upto = _Front.empty()
                for column, front in enumerate(fronts):
                    upto = _merged([upto, front])
                    parts[column].append(self._extended(upto, nodes, blocks[0], column, least))
            else:
                for first, front in enumerate(fronts):
                    for column, found in enumerate(self._free(front, nodes, blocks, first, least)):
                        parts[column].append(found)
            fronts = [_merged(part) for part in parts]
        return fronts, nodes

    def _free(self, front: _Front, nodes: _Nodes, blocks: np.ndarray, first: int, least: np.ndarray) -> list[_Front]:
        """The same for blocks of one level after prefixes that end at column `first`: none goes left of it."""
        num_columns = self.sizes.shape[1]
        fronts = [_Front.empty() for _ in range(num_columns)]
        fronts[first] = front
        for block in blocks:
            parts: list[list[_Front]] = [[] for _ in range(num_columns)]
            for rightmost, before in enumerate(fronts):
                for column in range(first, num_columns) if len(before.sizes) else ():
                    parts[max(rightmost, column)].append(self._extended(before, nodes, block, column, least))
            fronts = [_merged(part) for part in parts]
        return fronts

    def _extended(self, front: _Front, nodes: _Nodes, block: int, column: int, least: np.ndarray) -> _Front:
        """The prefixes of `front` with one more block, as far as all blocks to come can still fit."""
        sizes = front.sizes + self.sizes[block, column]
        fits = np.flatnonzero(sizes + least[block + 1 :].sum() <= self.room)
        return _Front(
            sizes[fits],
            front.scores[fits] + self.scores[block, column],
            front.seconds[fits] + self.seconds[block, column],
            nodes.add(front.nodes[fits], column),
        )

    def _with_flat(self, fronts: Sequence[_Front], nodes: _Nodes, ordered: int) -> np.ndarray:
        """The best prefix with the best columns of the flat blocks after it."""
        sizes, seconds = self.sizes[ordered:], self.seconds[ordered:]
        ends = []
        for column, front in enumerate(fronts):
            fits = np.flatnonzero(front.sizes + sizes[:, column:].min(1).sum() <= self.room)
            ends += [(front.scores[place], column, place) for place in fits]
        best = min(score for score, _, _ in ends)
        found: tuple[float, np.ndarray] | None = None
        for _, column, place in (end for end in ends if end[0] == best):
            front = fronts[column]
            width = sizes.shape[1] - column
            choices = Choices(
                seconds[:, column:].reshape(-1),
                sizes[:, column:].reshape(1, -1),
                np.array([self.room - front.sizes[place]]),
                np.repeat(np.arange(len(sizes)), width),
            )
            if found is not None and front.seconds[place] + choices.least(choices.scores).sum() >= found[0]:
                continue
            solution = minimise(choices)
            assert solution is not None, "the flat blocks fit at their least sizes"
            total = float(front.seconds[place]) + solution.score
            if found is None or total < found[0]:
                columns = np.append(nodes.columns(int(front.nodes[place])), column + solution.chosen % width)
                found = total, columns
        assert found is not None
        return found[1]


@dataclass(frozen=True)
class _Front:
    """Prefixes: (K,) Σ sizes, Σ scores, Σ seconds, and the node of each one's last block."""

    sizes: np.ndarray
    scores: np.ndarray
    seconds: np.ndarray
    nodes: np.ndarray

    @staticmethod
    def start() -> _Front:
        """The prefix without any block."""
        return _Front(np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, -1))

    @staticmethod
    def empty() -> _Front:
        """No prefix."""
        return _Front(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, int))


def _merged(fronts: Sequence[_Front]) -> _Front:
    """The prefixes that no other one equals or beats in size and in (score, second), by size."""
    filled = [front for front in fronts if len(front.sizes)]
    if not filled:
        return _Front.empty()
    sizes, scores, seconds, nodes = (
        np.concatenate([getattr(front, name) for front in filled]) for name in ("sizes", "scores", "seconds", "nodes")
    )
    ranks = _ranks(scores, seconds)
    order = np.lexsort((ranks, sizes))
    best = np.minimum.accumulate(np.append(len(ranks), ranks[order]))[:-1]
    kept = order[ranks[order] < best]
    return _Front(sizes[kept], scores[kept], seconds[kept], nodes[kept])


def _ranks(scores: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """(K,) the places of (score, second) in rising order; equal pairs share theirs."""
    order = np.lexsort((seconds, scores))
    steps = (np.diff(scores[order]) > 0) | (np.diff(seconds[order]) > 0)
    ranks = np.empty(len(order), int)
    ranks[order] = np.append(0, steps.cumsum())
    return ranks


class _Nodes:
    """Every prefix that was kept: its last column, and the node of the prefix before."""

    def __init__(self) -> None:
        self._parents: list[np.ndarray] = []
        self._columns: list[int] = []
        self._starts: list[int] = []
        self._size = 0

    def add(self, parents: np.ndarray, column: int) -> np.ndarray:
        """Nodes of the prefixes that continue `parents` with one column."""
        if len(parents):
            self._parents.append(parents)
            self._columns.append(column)
            self._starts.append(self._size)
        nodes = np.arange(self._size, self._size + len(parents))
        self._size += len(parents)
        return nodes

    def columns(self, node: int) -> np.ndarray:
        """(blocks,) the columns of a prefix."""
        found = []
        while node >= 0:
            part = int(np.searchsorted(self._starts, node, side="right")) - 1
            found.append(self._columns[part])
            node = int(self._parents[part][node - self._starts[part]])
        return np.array(found[::-1], dtype=int)
