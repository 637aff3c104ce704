"""HAQ (Wang et al., 1811.08886): an agent learns which bits to give each layer from the accuracy of whole plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawq.allocation.allocator import check_evaluations
from hawq.allocation.plan_space import PlanSpace
from hawq.checks import check_choice, check_range
from hawq.components import component
from hawq.quantization import Quantizer
from hawq.records import BitPlan, Precision, Sensitivity
from hawq.search.ddpg import Agent, Row
from hawq.search.kmeans import KMeans
from hawq.search.layer_facts import LayerFacts
from hawq.search.objective import Objective
from hawq.search.plans import Plans
from hawq.search.random_search import best_found, refuse_allocation
from hawq.search.refining import Found

WEIGHT_QUANTIZERS = ("run", "kmeans")
_FIRST_BITS = 4.0  # what the first layer sees as the action before it
_REPLAY = 128  # rows for each step of an episode
_LEAST_NOISE = 1e-6


@component("bits/haq")
@dataclass(frozen=True)
class Haq(PlanSpace):
    """HAQ's search: one episode is one plan, whose bits an actor-critic agent (DDPG) chooses from layer to layer.

    Plans over a limit are lowered step by step from the last layer to the first (§3.4). After each episode all its
    steps get the reward of the plan, and after the warm-up the agent is updated once per step. `search.steps` trains
    before a plan is judged; `search.judge=errors` is the published reward, 0.1 · accuracy in percent up to a constant.
    Blocks stand for layers; `model.blocks=layer` makes each layer a block.

    Args:
        target, unit, limits, candidates, overrides, tied, activations, activation_candidates, latency: which plans are
            allowed; as in `IntegerProgram`. Published are candidates 1 … 8 for a size, 2 … 8 for a latency, there with
            activations="mixed" and 8 bits for the first and the last layer by `overrides`.
        evaluations: episodes.
        weight_quantizer: what the search measures weights with: "run", the quantiser of the run, or "kmeans", as
            published for sizes: 2^b centroids per layer after 3 iterations.
        warmup: episodes after the first with random actions.
        noise, noise_decay: standard deviation of an action, noise · noise_decay^(episode − warmup).
        reward_scale: the reward is −reward_scale · value.
        seed: of everything random.

    Raises:
        ValueError: a value out of range; `check`: limits that cannot be met.
    """

    evaluations: int = 600
    weight_quantizer: str = "run"
    warmup: int = 20
    noise: float = 0.5
    noise_decay: float = 0.99
    reward_scale: float = 10.0
    seed: int = 0
    method = "HAQ"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_evaluations("evaluations", self.evaluations, least=1)
        check_choice("weight_quantizer", self.weight_quantizer, WEIGHT_QUANTIZERS)
        check_range("warmup", self.warmup, least=0, most=10**6)
        check_range("noise", self.noise, above=0, most=10)
        check_range("noise_decay", self.noise_decay, above=0, most=1)
        check_range("reward_scale", self.reward_scale, above=0, most=1e6)
        check_range("seed", self.seed, least=0, most=2**63 - 1)

    def allocate(self, sensitivity: Sensitivity) -> BitPlan:
        """Raises UserError: the plan is not known without measuring."""
        return refuse_allocation(self.evaluations)

    def own_quantizer(self, quantizer: Quantizer) -> Quantizer:
        """What plans are measured with, given the quantiser of the run."""
        return quantizer if self.weight_quantizer == "run" else KMeans(3, self.seed, quantizer)

    def search(self, objective: Objective, plans: Plans, facts: Sequence[LayerFacts]) -> Found:
        """The best plan of all episodes; one that was measured before is not measured again."""
        walk = Walk(plans, facts)
        agent = Agent(walk.table.shape[1], _REPLAY * len(walk.table), self.seed)
        for episode in range(self.evaluations):
            sigma = max(self.noise * self.noise_decay ** (episode - self.warmup), _LEAST_NOISE)
            draws = episode <= self.warmup
            observations, actions, chosen = walk.episode(
                lambda seen, random=draws, noise=sigma: agent.random_action() if random else agent.action(seen, noise)
            )
            reward = -self.reward_scale * objective.mean(plans.plan(plans.shrunk(chosen)))
            for step, (observation, action) in enumerate(zip(observations, actions, strict=True)):
                agent.replay.append(Row(observation, action, reward, step == len(actions) - 1))
                if not draws:
                    agent.update()
            agent.replay.append(Row(observations[-1], agent.action(observations[-1], sigma), 0.0, False))
        return best_found(objective)


class Walk:
    """The steps of an episode: one per group, or two where activations are mixed, its weights first.

    Args:
        plans: to choose from.
        facts: of each group.
    """

    def __init__(self, plans: Plans, facts: Sequence[LayerFacts]) -> None:
        self._plans = plans
        mixed = any(len(plans.levels(group)[1]) > 1 for group in range(len(plans.members)))
        self._steps = [(group, kind) for group in range(len(plans.members)) for kind in ((0, 1) if mixed else (0,))]
        self.table = normalised([_state(facts[group], group, kind if mixed else None) for group, kind in self._steps])
        """(steps, D): what the agent sees at each step; the last column is the action before, in bits."""

    def episode(self, act: object) -> tuple[list[np.ndarray], list[float], np.ndarray]:
        """Observations, actions and the plan (groups,) of one episode, with `act`: observation → action in 0 … 1."""
        observations, actions, before = [], [], _FIRST_BITS
        found: list[list[int]] = [[] for _ in self._plans.members]
        for at, (group, kind) in enumerate(self._steps):
            observation = self.table[at].copy()
            observation[-1] = before
            action = act(observation)  # type: ignore[operator]
            bits = bits_of(action, self._plans.levels(group)[kind])
            observations.append(observation)
            actions.append(action)
            found[group].append(bits)
            before = float(bits)
        return observations, actions, np.array([self._option(group, bits) for group, bits in enumerate(found)])

    def _option(self, group: int, bits: Sequence[int]) -> int:
        weights = bits[0]
        activations = bits[1] if len(bits) > 1 else self._plans.levels(group)[1][-1]
        place = self._plans.at(group, Precision(weights, activations))
        return place if place is not None else int(self._plans.members[group][-1])


def bits_of(action: float, levels: Sequence[int]) -> int:
    """round(l − ½ + a · (h + ½ − (l − ½))) for the levels l … h: an equal share of 0 … 1 for each level."""
    place = int(np.round(-0.5 + action * len(levels)))
    return levels[min(max(place, 0), len(levels) - 1)]


def normalised(table: Sequence[Sequence[float]]) -> np.ndarray:
    """Each column but the last scaled to 0 … 1; one of equal values, and the last one, stay as they are."""
    found = np.array(table, dtype=float)
    for column in range(found.shape[1] - 1):
        least, most = found[:, column].min(), found[:, column].max()
        if most > least:
            found[:, column] = (found[:, column] - least) / (most - least)
    return found


def _state(facts: LayerFacts, index: int, kind: int | None) -> list[float]:
    """Depthwise, channels in and out, stride, kernel, weights, map size, index, (kind,) and the action before."""
    plain = [facts.depthwise, facts.in_channels, facts.out_channels, facts.stride, facts.kernel]
    more = [facts.num_weights, facts.map_size, index, *([] if kind is None else [kind])]
    return [float(value) for value in (*plain, *more, _FIRST_BITS)]
