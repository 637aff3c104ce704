"""HAQ's agent, its table of transitions, its episodes, and k-means weights, against what was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Reference
from torch import Tensor, nn

from hawq.allocation import IntegerProgram
from hawq.records import Block, Precision
from hawq.search import Haq, Objective, Plans
from hawq.search.ddpg import Agent, Replay, Row
from hawq.search.haq import Walk, bits_of, normalised
from hawq.search.kmeans import KMeans, lloyd, nearest_centroid
from hawq.search.layer_facts import LayerFacts, layer_facts

BLOCKS = [Block("a", ("a",), 27, 9, 3), Block("b", ("b",), 64, 9, 4), Block("c", ("c",), 10, 9, 5)]
FACTS = (
    LayerFacts(False, 3, 8, 2, 3, 27, 64),
    LayerFacts(True, 8, 8, 1, 5, 64, 16),
    LayerFacts(False, 8, 2, 0, 1, 10, 1),
)


def plans_with(**space: object) -> Plans:
    return Plans(IntegerProgram(4.0, "average_bits", **space).problem(BLOCKS, None))


def counted(plan: Mapping[str, Precision]) -> Iterator[Tensor]:
    """The more bits for b, the better."""
    yield torch.full((4,), 8.0 - plan["b"].weight_bits, dtype=torch.float64)


def test_states_are_scaled_column_by_column_and_the_action_before_stays_in_bits() -> None:
    walk = Walk(plans_with(candidates=(2, 3, 4), activations=8), FACTS)
    expected = [
        [0, 0, 1, 1.0, 0.5, 17 / 54, 1.0, 0.0, 4],
        [1, 1, 1, 0.5, 1.0, 1.0, 15 / 63, 0.5, 4],
        [0, 1, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 4],
    ]
    assert walk.table == pytest.approx(np.array(expected))
    actions = iter([0.0, 0.5, 1.0])
    observations, taken, chosen = walk.episode(lambda seen: next(actions))
    assert [seen[-1] for seen in observations] == [4.0, 2.0, 3.0]  # raw
    assert taken == [0.0, 0.5, 1.0]
    plans = plans_with(candidates=(2, 3, 4), activations=8)
    assert [p.weight_bits for p in plans.plan(chosen).values()] == [2, 3, 4]
    assert (walk.table[:, -1] == 4).all()  # an episode leaves the table as it is


def test_mixed_activations_take_a_step_of_their_own() -> None:
    plans = plans_with(candidates=(2, 4), activations="mixed", activation_candidates=(3, 8))
    walk = Walk(plans, FACTS)
    assert walk.table.shape == (6, 10)
    assert walk.table[:, -2].tolist() == [0, 1] * 3
    actions = iter([0.0, 1.0] * 3)
    _, _, chosen = walk.episode(lambda seen: next(actions))
    assert set(plans.plan(chosen).values()) == {Precision(2, 8)}


@pytest.mark.parametrize(
    ("action", "levels", "bits"),
    [
        *((0.0, range(1, 9), 1), (1.0, range(1, 9), 8), (0.5001, range(1, 9), 5), (0.124, range(1, 9), 1)),
        *((0.126, range(1, 9), 2), (0.9, (8,), 8), (0.4, (2, 4, 8), 4), (0.3, (2, 4, 8), 2)),
    ],
)
def test_each_level_has_an_equal_share_of_the_actions(action: float, levels: range, bits: int) -> None:
    assert bits_of(action, list(levels)) == bits
    if levels == range(1, 9) and 0 < action < 1:  # as published, for consecutive bits
        assert bits == round(0.5 + action * (8.5 - 0.5))


def test_a_column_of_equal_values_stays() -> None:
    assert normalised([[3.0, 1.0, 7.0], [3.0, 2.0, 9.0]]).tolist() == [[3, 0, 7], [3, 1, 9]]


def test_transitions_are_those_of_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Replay] = []
    updates = []
    whole = Agent.__init__

    def watched(self: Agent, *given: int) -> None:
        whole(self, *given)
        tables.append(self.replay)

    monkeypatch.setattr(Agent, "__init__", watched)
    monkeypatch.setattr(Agent, "update", lambda self: updates.append(len(self.replay.rows)))
    plans, haq = plans_with(candidates=(2, 3, 4), activations=8), Haq(evaluations=4, warmup=1, seed=3)
    with Objective(counted, (4,), 4) as objective:
        haq.search(objective, plans, FACTS)
    rows = tables[0].rows
    assert [row.terminal for row in rows] == [False, False, True, False] * 4
    for episode in range(4):
        first, second, third, extra = rows[4 * episode : 4 * episode + 4]
        assert first.reward == second.reward == third.reward < 0 and extra.reward == 0.0
        assert (extra.observation == third.observation).all()
        assert [r.observation[-1] for r in (first, second, third)] == [
            4.0,
            *(float(bits_of(r.action, [2, 3, 4])) for r in (first, second)),
        ]
    assert updates == [9, 10, 11, 13, 14, 15]  # episodes 0 and 1 are random; then one update per step


def test_the_row_after_a_terminal_one_is_never_drawn_and_old_rows_are_forgotten() -> None:
    replay = Replay(5)
    for number in range(8):
        replay.append(Row(np.array([number, 0.0]), 0.5, float(number), number % 4 == 2))
    assert [row.reward for row in replay.rows] == [3, 4, 5, 6, 7]
    assert [replay.rows[at].reward for at in replay.drawable()] == [3, 4, 5, 6]  # 7 has no next one
    replay.append(Row(np.array([8, 0.0]), 0.5, 8.0, False))
    assert [replay.rows[at].reward for at in replay.drawable()] == [4, 5, 6]  # 7 follows the terminal 6
    now, _, reward, following, goes_on = replay.sample(64, np.random.default_rng(0))
    assert (following[:, 0] == now[:, 0] + 1).all() and set(reward[:, 0].tolist()) == {4.0, 5.0, 6.0}
    assert (goes_on[:, 0] == (reward[:, 0] != 6.0).float()).all()


@pytest.mark.parametrize("slope", [-5.0, 5.0])
def test_an_agent_learns_the_better_action_and_is_seeded(slope: float) -> None:
    def trained(seed: int) -> tuple[float, float]:
        agent = Agent(2, 400, seed)
        state = np.array([0.3, 4.0])
        for _ in range(60):
            action = agent.random_action()
            agent.replay.append(Row(state, action, slope * action, True))
            agent.replay.append(Row(state, 0.0, 0.0, False))
        before = agent.action(state, 1e-6)
        for _ in range(150):
            agent.update()
        return before, agent.action(state, 1e-6)

    before, after = trained(0)
    assert (after - before) * slope > 0 and abs(after - before) > 0.2
    assert trained(0) == (before, after)


def test_noise_is_a_truncated_normal() -> None:
    agent = Agent(2, 10, 0)
    drawn = np.array([agent.action(np.array([0.1, 0.2]), 0.5) for _ in range(400)])
    assert ((drawn >= 0) & (drawn <= 1)).all() and 0.2 < drawn.std() < 0.3
    assert np.ptp([agent.action(np.array([0.1, 0.2]), 1e-6) for _ in range(5)]) < 1e-4


def test_lowering_walks_from_the_last_group_to_the_first_until_the_limit_holds() -> None:
    plans = plans_with(candidates=(2, 3, 4, 5), activations=8)  # 101 weights, 404 bits
    top = np.array([members[-1] for members in plans.members])
    bits = [p.weight_bits for p in plans.plan(plans.shrunk(top)).values()]
    assert bits == [5, 4, 4] or bits == [4, 4, 4]
    by_hand, walk = [5, 5, 5], [2, 1, 0]
    while sum(b * n for b, n in zip(by_hand, (27, 64, 10), strict=True)) > 404:
        for place in walk:
            by_hand[place] -= by_hand[place] > 2
            if sum(b * n for b, n in zip(by_hand, (27, 64, 10), strict=True)) <= 404:
                break
    assert bits == by_hand


def test_haq_finds_what_is_better() -> None:
    plans = plans_with(candidates=(2, 3, 4, 5, 6), activations=8)
    with Objective(counted, (4,), 60) as objective:
        found = Haq(evaluations=60, warmup=5, seed=1).search(objective, plans, FACTS)
    assert found.plan["b"].weight_bits == 5  # all that the limit leaves for b
    assert all(plans.allows(plans.chosen(one.plan)) for one in objective.history)


def test_facts_of_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
    blocks = [Block(name, (name,), model[int(name)].weight.numel(), 9, 3) for name in ("0", "1", "3")]
    found = layer_facts(model, IntegerProgram(4.0, "average_bits").problem(blocks, None), torch.zeros(1, 3, 8, 8))
    assert found == (
        LayerFacts(False, 3, 8, 2, 3, 216, 64),
        LayerFacts(True, 8, 8, 1, 5, 200, 16),
        LayerFacts(False, 128, 2, 0, 1, 256, 1),
    )


def test_clusters_are_those_of_lloyd_and_their_means() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    start = np.sort(values[:8])
    reference = Reference(8, init=start[:, None], n_init=1, max_iter=3, tol=0).fit(values[:, None])
    centroids = start
    for _ in range(3):
        labels = nearest_centroid(values, centroids)
        centroids = np.sort(np.array([values[labels == k].mean() for k in range(8)]))
    assert np.sort(reference.cluster_centers_[:, 0]) == pytest.approx(centroids)
    found = lloyd(values, 8, 3, np.random.default_rng(0))
    errors = [((values - c[nearest_centroid(values, c)]) ** 2).mean() for c in (start, found)]
    assert len(found) == 8 and errors[1] < errors[0]

    weight = torch.from_numpy(values.astype(np.float32)).reshape(20, 25).requires_grad_()
    quantizer = KMeans(3, 0).weight(3)
    assert quantizer(weight) is weight
    quantizer.initialise(weight)
    shared = quantizer(weight)
    assert shared.unique().numel() <= 8
    for label in quantizer.labels.unique():
        inside = quantizer.labels == label
        assert shared[inside].detach() == pytest.approx(float(weight.detach()[inside].mean()), abs=1e-6)
    shared.sum().backward()
    assert (weight.grad == 1).all()
