"""Optuna's samplers on plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from hawq.allocation import IntegerProgram
from hawq.records import Block, Precision
from hawq.search import Objective, OptunaSearch, Plans

BLOCKS = [Block(f"b{i}", (f"b{i}",), n, 9, 3) for i, n in enumerate((27, 64, 10, 40))]
needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None or find_spec("cmaes") is None, reason="the extra [search]"
)


def value(plan: Mapping[str, Precision]) -> Iterator[Tensor]:
    total = sum((i + 1) * 4.0 ** -plan[f"b{i}"].weight_bits for i in range(4))
    yield torch.full((4,), total, dtype=torch.float64)


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_sampler_is_seeded_stays_within_limits_and_beats_its_first_plans(sampler: str) -> None:
    plans = Plans(IntegerProgram(4.0, "average_bits", activations=8).problem(BLOCKS, None))

    def run(seed: int) -> tuple[list[float], float]:
        with Objective(value, (4,), 40) as objective:
            found = OptunaSearch(evaluations=40, sampler=sampler, seed=seed).search(objective, plans, ())
            assert all(plans.allows(plans.chosen(one.plan)) for one in objective.history)
            return [one.mean for one in objective.history], objective.mean(found.plan)

    means, best = run(0)
    assert run(0) == (means, best)
    assert best == min(means) < min(means[:5])


def test_without_optuna_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hawq.search.optuna_search.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sampler=tpe needs optuna, which is absent: pip install 'hawq\[search\]'"):
        OptunaSearch().check(BLOCKS)
