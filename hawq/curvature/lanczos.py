"""Lanczos iteration for the ends of the spectrum, with a bound on what it may have missed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from hawq.checks import check_range
from hawq.components import component
from hawq.curvature.certificate import CONFIDENCE
from hawq.curvature.krylov import combination, krylov_start, krylov_step, ritz_pairs, ritz_vector
from hawq.curvature.probing import (
    End,
    grown,
    nothing_known,
    probe_from,
    probed,
    random_probe,
    ritz_subspace,
    spanned_by,
)
from hawq.curvature.solver import ALL, MOST_READINGS, REST, SUBSET, Reading, State, check_tolerance, unit
from hawq.curvature.steering import NOTHING, PLAIN, SUBSPACE, WHOLE, next_product
from hawq.records import Estimate

_RISK = 0.5 * (1 - CONFIDENCE)  # half of what is stated: the bounds are sharp, and missed as often as they may be
_RISKS = {SUBSET: 0.5 * _RISK, REST: 1.2 * _RISK, ALL: 0.3 * _RISK}  # of a split matrix: what is stated, in all
_WITH_ROWS = 0.5  # of the risk, for the probe of what rows leave; the other half for one without them
_GAP = 0.1  # of the eigenvalue, to the next one: what the search reckons with, as long as it is not known
_SHARPER = 0.3  # of the tolerance: on the subset


@component("solver/lanczos", not_in_key=("memory_limit_gib",))
@dataclass(frozen=True)
class Lanczos(Reading):
    """Largest algebraic eigenvalue: Lanczos from an informed start, then from a random one in what that has left.

    1. Search: the Krylov space of v, Hv, H²v, … (Lanczos 1950) gives a Ritz pair (θ, y) with r = ‖Hy − θy‖. Some
       eigenvalue is within r of θ (Parlett, theorem 4.5.1), not always the largest: where v is nearly an eigenvector,
       the others are never seen.
    2. Probe: Lanczos from a random vector on the complement of y, whose largest eigenvalue is then at most μ with a
       probability of 99 % (`certificate`). So θ ≤ λ_max ≤ λ_max([[θ, r], [r, μ]]) ≈ θ + r²/(θ − μ); the difference is
       the stated error.

    A random start is a probe itself. From the subset, H = s A + (1 − s) D, A the matrix of the subset and D that of the
    other samples. A is searched and probed alone, at a share s of the cost; Hy and μ = s μ_A + (1 − s) μ_D (Weyl) then
    take two products of D, where little of the curvature is left to it, and more where there is more.

    Args:
        tolerance: stops once the error is at most tolerance · |θ|.
        max_iterations: most products per block; also the number of basis vectors kept.
        both_ends: goes on until the smallest algebraic eigenvalue is as near, relative to the larger of the two.

    Raises:
        ValueError: a value out of range.
    """

    tolerance: float = 0.01
    max_iterations: int = 50
    both_ends: bool = False
    start_from: str = field(default="subset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        check_range("max_iterations", self.max_iterations, least=2, most=MOST_READINGS)

    @property
    def name(self) -> str:
        """How results call it."""
        return "lanczos" if self.curvature == "hessian" else f"lanczos ({self.curvature})"

    @property
    def reads(self) -> str:
        """Products H · state["vector"] (n_i,)."""
        return "products"

    def start(self, vector: Tensor, seed: int = 0, rows: Tensor | None = None) -> State:
        """`vector` (n_i,) is random with start_from="random", and informed else; `seed` is for the probes.

        `rows` U (m, n_i), with UᵀU near H, make the probe easier: only the difference is left to it.
        """
        krylov = krylov_start(vector)
        state = {
            "seed": seed,
            "products": 0,
            "done": False,
            "converged": False,
            "part": ALL,
            "share": 1.0,
            "rows": rows,
        }
        state |= {"vector": krylov["vector"], "search": krylov, "subspace": nothing_known(), "probes": []}
        if self.start_from != "random":
            return state
        probe = probe_from(vector, 0, ALL, 1.0, self._risk(ALL, split=False))
        return state | {"search": None, "probes": [probe], "asked": 0}

    def update(self, state: State, reading: Tensor) -> State:
        """One more product, of the search, a probe, or the subspace; `reading` is H · state["vector"] (n_i,)."""
        state = state | {"products": state["products"] + (state["part"] != SUBSET)}
        if state["search"] is not None:
            return self._searched(state | {"search": krylov_step(state["search"], reading)})
        subspace, asked = state["subspace"], state["asked"]
        if asked == "known":
            product = state["known"] + (1 - state["share"]) * reading
            return self._split(state | {"known": None, "subspace": spanned_by(state["vector"], product)})
        if asked == SUBSPACE:
            return self._decided(state | {"subspace": grown(subspace, reading)})
        probes = list(state["probes"])
        probes[asked] = probed(probes[asked], subspace, reading)
        return self._decided(state | {"probes": probes})

    def estimates(self, state: State) -> dict[str, Estimate]:
        """ "eigenvalue", and "smallest" with `both_ends`; the errors are bounds once there is a probe."""
        found = state.get("found") or self._findings(state)
        return {
            name: Estimate(value, error, state["products"], state["converged"], confidence=confidence)
            for name, (value, error, confidence) in found.items()
        }

    def eigenvector(self, state: State) -> Tensor:
        """The Ritz vector (n_i,); for both ends their sum, whose Krylov space holds both."""
        return unit(combination([1.0] * len(state["directions"]), state["directions"]))

    def sharper(self) -> Lanczos:
        """The search alone, with half the tolerance."""
        return _SearchOnly(**self._settings() | {"tolerance": self.tolerance / 2})

    def for_subset(self) -> Lanczos:
        """The same with a tenth of the tolerance; its last state can be `carried` on."""
        return _OnSubset(**self._settings() | {"tolerance": self.tolerance * _SHARPER})

    def carried(self, state: State, share: float) -> State | None:
        """The state on all samples after a run on a subset that holds `share` of them.

        It asks for products of a part of the samples, as state["part"] says. None where the run has found nothing on
        the subset, and for both ends: all samples are then searched, from `eigenvector`.
        """
        subspace = state["subspace"]
        if self.both_ends or not (subspace["matrix"] and state["probes"]):
            return None
        known = combination([row[0] for row in subspace["matrix"]], subspace["basis"])
        if len(subspace["matrix"]) == 1 and subspace["following"] is not None:
            known = known + subspace["coupling"][0] * subspace["following"]
        (probe,) = state["probes"]
        assert probe["deflated"] == 1, "the bound is one on the complement of the vector that is carried on"
        return state | {
            "products": 0,
            "done": False,
            "converged": False,
            "found": None,
            "directions": [],
            "probes": [probe | {"part": SUBSET, "scale": share}],
            "share": share,
            "known": share * known,
            "asked": "known",
            "part": REST,
            "vector": subspace["basis"][0],
            "subspace": nothing_known() | {"basis": subspace["basis"][:1]},
        }

    def _searched(self, state: State) -> State:
        """Goes on searching, or begins to probe what the Ritz vectors leave."""
        krylov = state["search"]
        pairs = ritz_pairs(krylov)
        ends = [pairs[-1], pairs[0]] if self.both_ends and len(pairs) > 1 else [pairs[-1]]
        scale = max(abs(pair.value) for pair in ends)
        near = all(pair.error <= math.sqrt(self.tolerance * _GAP) * scale for pair in ends)
        if len(krylov["alpha"]) == len(krylov["vector"]):  # the Krylov space is everything
            return self._ended(state | {"directions": [ritz_vector(krylov, pair) for pair in ends]}, converged=True)
        if state["products"] >= self.max_iterations:
            return self._ended(state | {"directions": [ritz_vector(krylov, pair) for pair in ends]}, converged=False)
        if not (near or krylov["invariant"]):
            return state | {"vector": krylov["vector"]}
        subspace = ritz_subspace(krylov, ends)
        return self._probing(state | {"search": None, "subspace": subspace}, state["rows"])

    def _probing(self, state: State, rows: Tensor | None) -> State:
        """Begins a probe of the whole, of what `rows` leave where there are any."""
        risk = self._risk(ALL, split=False)
        if state["rows"] is not None:
            risk *= _WITH_ROWS if rows is not None else 1 - _WITH_ROWS
        seed, known = self._seed(state, 1 if rows is not None else 2), self._left_out(state["subspace"])
        return _asks(state | {"probes": [random_probe(known, known[0], seed, ALL, 1.0, risk, rows)]}, 0)

    def _split(self, state: State) -> State:
        """Adds the probe of the samples outside the subset."""
        share, risk = 1 - state["share"], self._risk(REST, split=True)
        probe = random_probe(state["subspace"]["basis"], state["vector"], self._seed(state, 3), REST, share, risk)
        return _asks(state | {"probes": [*state["probes"], probe]}, len(state["probes"]))

    def _decided(self, state: State) -> State:
        """Ends, or asks for the product that may lower the bound most."""
        ends = _ends(state, both=self.both_ends)
        scale = max(abs(end.value) for end in ends)
        limits = [self.tolerance * abs(ends[0].value), self.tolerance * scale]
        wanting = [(end, limit) for end, limit in zip(ends, limits, strict=False) if _error(state, end) > limit]
        if not wanting or state["products"] >= self.max_iterations:
            directions = [end.vector() for end in ends if math.isfinite(end.value)]
            return self._ended(state | {"directions": directions}, converged=not wanting)
        end, limit = wanting[0]
        costs = {SUBSET: state["share"], REST: 1 - state["share"], ALL: 1.0}
        choice = next_product(end, limit, state["subspace"], state["probes"], costs)
        if choice == NOTHING:
            return self._ended(state | {"directions": [end.vector() for end in ends]}, converged=False)
        if choice == PLAIN:
            return self._probing(state, None)
        if choice == WHOLE:
            known, risk = state["subspace"]["basis"], self._risk(ALL, split=True)
            whole = random_probe(known, known[0], self._seed(state, 4), ALL, 1.0, risk)
            return _asks(state | {"probes": [whole]}, 0)
        return _asks(state, choice)

    def _ended(self, state: State, *, converged: bool) -> State:
        """The last state: what was found, without the vectors that led there."""
        ended = state | {"done": True, "converged": converged, "found": self._findings(state, ended=True), "rows": None}
        return ended | {"search": None, "subspace": nothing_known(), "probes": [], "part": ALL}

    def _findings(self, state: State, *, ended: bool = False) -> dict[str, tuple[float, float, float | None]]:
        """Quantity → value, error and its confidence; a search that has `ended` alone states its residual."""
        names = ("eigenvalue", "smallest") if self.both_ends else ("eigenvalue",)
        krylov = state["search"]
        found: list[tuple[float, float, float | None]]
        if krylov is None:
            ends = _ends(state, both=self.both_ends)
            found = [(end.value, _error(state, end), CONFIDENCE) for end in ends]
        elif krylov["alpha"]:
            pairs = ritz_pairs(krylov)
            exact = len(krylov["alpha"]) == len(krylov["vector"])
            floor = 10 * torch.finfo(krylov["vector"].dtype).eps * max(abs(pairs[0].value), abs(pairs[-1].value))
            sure = 1.0 if exact else None
            found = [(pair.value, max(pair.error, floor), sure) for pair in (pairs[-1], pairs[0])]
            if not (exact or ended):  # what the probe will say is not known yet
                found = [(value, math.inf, None) for value, _, _ in found]
        else:
            found = [(math.nan, math.inf, None)] * 2
        return dict(zip(names, found, strict=False))

    def _settings(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def _left_out(self, subspace: State) -> list[Tensor]:
        """The vectors of the subspace, on whose complement a probe begins."""
        return list(subspace["basis"])

    def _seed(self, state: State, probe: int) -> int:
        """The seed of one of the probes, other than that of the start."""
        return int(state["seed"]) + probe

    def _risk(self, part: str, *, split: bool) -> float:
        """The risk of one probe's bound at one end."""
        return (_RISKS[part] if split else _RISK) / (2 if self.both_ends else 1)


class _SearchOnly(Lanczos):
    """The search for an eigenvector, which ends without a probe."""

    def _searched(self, state: State) -> State:
        searched = super()._searched(state)
        if searched["done"] or searched["search"] is not None:
            return searched
        return self._ended(searched | {"directions": searched["subspace"]["basis"]}, converged=True)


class _OnSubset(Lanczos):
    """The run on a subset: its bound takes a share of the risk, and its vectors are kept."""

    def _left_out(self, subspace: State) -> list[Tensor]:
        return super()._left_out(subspace)[:1]  # the one vector whose product all samples will give

    def _seed(self, state: State, probe: int) -> int:
        return super()._seed(state, probe + 4)

    def _risk(self, part: str, *, split: bool) -> float:
        return super()._risk(SUBSET, split=True)

    def _ended(self, state: State, *, converged: bool) -> State:
        return state | {"done": True, "converged": converged, "found": self._findings(state, ended=True), "rows": None}


def _asks(state: State, asked: Any) -> State:
    """The state with the vector of the next product: that of the subspace, or of the probe at a place."""
    if asked == SUBSPACE:
        return state | {"asked": asked, "part": ALL, "vector": state["subspace"]["following"]}
    probe = state["probes"][asked]
    return state | {"asked": asked, "part": probe["part"], "vector": probe["krylov"]["vector"]}


def _ends(state: State, *, both: bool) -> list[End]:
    return [End(state["subspace"], state["probes"], sign) for sign in ((1, -1) if both else (1,))]


def _error(state: State, end: End) -> float:
    """The error of a bound, and at least what rounding does to products."""
    return max(end.error, 10 * torch.finfo(state["vector"].dtype).eps * abs(end.value))
