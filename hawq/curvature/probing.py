"""What is known of one end of a spectrum: a subspace with its products, and random probes of its complement.

A subspace is a dictionary: an orthonormal `basis` Y, `matrix` M and `coupling` c of H Y = Y M + q cᵀ, and `following`,
the unit vector q (None where c is zero). A probe is one too: the Krylov space (`krylov`) of a random vector on the
complement of the first `deflated` vectors of that basis, for a `part` of H that is weighted by `scale`. Where `rows` U
are known, UᵀU near that part, the Krylov space is that of the difference E, and λ_max ≤ λ_max(UᵀU) + λ_max(E) (Weyl).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hawq.curvature.certificate import largest_eigenvalue_bound, least_overlap, with_complement
from hawq.curvature.krylov import RitzPair, combination, krylov_start, krylov_step, ritz_pairs, ritz_vector
from hawq.curvature.solver import State, unit


def ritz_subspace(krylov: State, pairs: Sequence[RitzPair]) -> State:
    """The span of some Ritz vectors of a Krylov space (thick restart; Wu and Simon, 2000)."""
    values = np.diag([pair.value for pair in pairs]).tolist()
    grows = len(krylov["basis"]) > len(krylov["alpha"])
    coupling = [pair.coupling if grows else 0.0 for pair in pairs]
    following = krylov["basis"][-1] if grows else None
    return {
        "matrix": values,
        "coupling": coupling,
        "basis": [ritz_vector(krylov, pair) for pair in pairs],
        "following": following,
    }


def spanned_by(vector: Tensor, product: Tensor) -> State:
    """The span of one unit vector (n,), with its product (n,)."""
    value = float(vector.dot(product))
    remainder = product - value * vector
    remainder -= vector.dot(remainder) * vector
    return _bordered({"matrix": [], "coupling": [], "basis": [vector], "following": None}, [[value]], remainder)


def grown(subspace: State, product: Tensor) -> State:
    """The subspace with `following` in it, whose product (n,) is given."""
    basis = [*subspace["basis"], subspace["following"]]
    value = float(subspace["following"].dot(product))
    remainder = product.clone()
    for _ in range(2):
        for vector in basis:
            remainder -= vector.dot(remainder) * vector
    coupling = subspace["coupling"]
    matrix = [[*row, c] for row, c in zip(subspace["matrix"], coupling, strict=True)] + [[*coupling, value]]
    return _bordered(subspace | {"basis": basis}, matrix, remainder)


def _bordered(subspace: State, matrix: list[list[float]], remainder: Tensor) -> State:
    beta = float(remainder.norm())
    grows = beta > 0.0 and len(matrix) < len(remainder)
    return subspace | {
        "matrix": matrix,
        "coupling": [0.0] * (len(matrix) - 1) + [beta if grows else 0.0],
        "following": remainder / beta if grows else None,
    }


def nothing_known() -> State:
    """The empty subspace."""
    return {"matrix": [], "coupling": [], "basis": [], "following": None}


def random_probe(
    known: Sequence[Tensor], like: Tensor, seed: int, part: str, scale: float, risk: float, rows: Tensor | None = None
) -> State:
    """A probe from a random vector (n,) of the complement, whose least overlap holds with probability 1 − risk.

    Args:
        known: orthonormal vectors (n,) that are left out, the first of the subspace.
        like: any vector (n,) of the same type.
        seed: of the random vector.
        part, scale: of H.
        risk: at one end.
        rows: U (m, n) with UᵀU near the part.
    """
    vector = torch.randn(len(like), generator=torch.Generator().manual_seed(seed), dtype=like.dtype).to(like.device)
    for _ in range(2):
        for other in known:
            vector -= other.dot(vector) * other
    probe = probe_from(vector, len(known), part, scale, risk)
    if rows is None:
        return probe
    basis = torch.stack(list(known))
    outside = rows - (rows @ basis.T) @ basis
    return probe | {"rows": rows, "known": float(torch.linalg.eigvalsh(outside @ outside.T)[-1].clamp_min(0))}


def probe_from(vector: Tensor, deflated: int, part: str, scale: float, risk: float) -> State:
    """A probe from a random vector (n,) that is orthogonal to `deflated` known ones."""
    overlap = least_overlap(len(vector) - deflated, risk)
    about = {"part": part, "scale": scale, "overlap": overlap, "deflated": deflated, "rows": None, "known": 0.0}
    return about | {"krylov": krylov_start(vector)}


def probed(probe: State, subspace: State, reading: Tensor) -> State:
    """The probe with one more product (n,) of its part and its last vector."""
    rows, krylov = probe["rows"], probe["krylov"]
    product = reading if rows is None else reading - rows.T @ (rows @ krylov["vector"])
    return probe | {"krylov": krylov_step(krylov, product, subspace["basis"][: probe["deflated"]])}


class End:
    """One end of the spectrum: the largest eigenvalue, or with `sign` −1 the smallest.

    Args:
        subspace: with products.
        probes: of its complement, whose weighted parts add up to H.
        sign: 1, or −1 for the matrix −H.
    """

    def __init__(self, subspace: State, probes: Sequence[State], sign: int = 1) -> None:
        self._subspace, self._probes, self._sign = subspace, list(probes), sign
        self._matrix = sign * np.array(subspace["matrix"], dtype=float)
        inside = np.linalg.eigvalsh(self._matrix)[-1] if len(self._matrix) else -np.inf
        self._tops = [self._top(probe) for probe in self._probes]
        whole = [top for top, probe in zip(self._tops, self._probes, strict=True) if _is_whole(probe)]
        self._inner = float(max([inside, *whole]))
        self.lies_inside = bool(inside >= self._inner)
        """Whether the best value is one of the subspace, and not of a probe."""

    @property
    def value(self) -> float:
        """The best Ritz value: λ_max is at least as large."""
        return self._sign * self._inner

    @property
    def error(self) -> float:
        """How far λ_max may be beyond the value; infinite while a probe has no product yet."""
        return max(self.bound() - self._inner, 0.0)

    def bound(self) -> float:
        """An upper bound on λ_max(sign · H), with the risk of the probes."""
        return self._bordered(sum(self.part_bound(place) * p["scale"] for place, p in enumerate(self._probes)))

    def part_bound(self, place: int) -> float:
        """An upper bound on the largest eigenvalue of one probe's part on the complement."""
        probe = self._probes[place]
        alpha = [self._sign * value for value in probe["krylov"]["alpha"]]
        return self._known(probe) + largest_eigenvalue_bound(alpha, probe["krylov"]["beta"], probe["overlap"])

    def hopes(self, *, coupled: bool = True) -> float:
        """What `error` comes to if each probe has already seen its largest eigenvalue, and so cannot be below.

        With `coupled` false it is also supposed that the subspace is invariant.
        """
        complement = sum(top * probe["scale"] for top, probe in zip(self._tops, self._probes, strict=True))
        coupling = self._subspace["coupling"] if coupled else [0.0] * len(self._matrix)
        return max(self._bordered(complement, coupling) - self._inner, 0.0)

    def gain(self, place: int) -> float:
        """How much one more product of a probe may lower the bound: the overlap counts with the root of the degree."""
        probe, top = self._probes[place], self._tops[place]
        degree = len(probe["krylov"]["alpha"])
        shrinks = probe["overlap"] ** (1 / (2 * degree) - 1 / (2 * degree + 2))
        return float(probe["scale"] * (self.part_bound(place) - top) * (1 - shrinks))

    def forecast(self, place: int, products: int) -> float:
        """What `error` may come to after so many more products of a probe, at the pace of its overlap's root."""
        complement = sum(self.part_bound(i) * p["scale"] for i, p in enumerate(self._probes) if i != place)
        probe, top = self._probes[place], self._tops[place]
        degree = len(probe["krylov"]["alpha"])
        shrinks = probe["overlap"] ** (1 / (2 * degree) - 1 / (2 * (degree + products)))
        bound = top + (self.part_bound(place) - top) * shrinks
        return max(self._bordered(complement + probe["scale"] * bound) - self._inner, 0.0)

    def vector(self) -> Tensor:
        """The unit Ritz vector (n,) of the value."""
        if self.lies_inside:
            return unit(combination(np.linalg.eigh(self._matrix)[1][:, -1], self._subspace["basis"]))
        krylov = max(filter(_is_whole, self._probes), key=self._top)["krylov"]
        return unit(ritz_vector(krylov, ritz_pairs(krylov)[-1 if self._sign > 0 else 0]))

    def _top(self, probe: State) -> float:
        """The largest Ritz value, and what is known beside it."""
        if not probe["krylov"]["alpha"]:
            return -float("inf")
        pairs = ritz_pairs(probe["krylov"])
        return self._known(probe) + (pairs[-1].value if self._sign > 0 else -pairs[0].value)

    def _known(self, probe: State) -> float:
        """λ_max(± UᵀU), of which the negative is at most zero."""
        return float(probe["known"]) if self._sign > 0 else 0.0

    def _bordered(self, complement: float, coupling: Sequence[float] | None = None) -> float:
        if not self._probes:  # the subspace is everything
            complement = -np.inf
        given = self._subspace["coupling"] if coupling is None else coupling
        return with_complement(self._matrix.tolist(), given, complement)


def _is_whole(probe: State) -> bool:
    """Whether the Ritz values of a probe are Rayleigh quotients of H itself."""
    return probe["scale"] == 1.0 and probe["rows"] is None
