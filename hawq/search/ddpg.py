"""Deep deterministic policy gradient (Lillicrap et al., 1509.02971), as HAQ's code has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

_HIDDEN = 300
_ACTOR_LR, _CRITIC_LR = 1e-4, 1e-3
_BATCH, _TARGET_RATE, _DISCOUNT, _AVERAGE = 64, 0.01, 1.0, 0.5


@dataclass(frozen=True)
class Row:
    """One row of the replay memory: in `observation` (D,), `action` brought `reward`; the episode ended if `terminal`.

    The next observation is that of the next row.
    """

    observation: np.ndarray
    action: float
    reward: float
    terminal: bool


class Replay:
    """The last `limit` rows of all episodes, one after the other.

    After the last action of an episode one more row is appended: the last observation again, not terminal, with reward
    0. It is what the terminal row is followed by, and is never drawn itself.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.rows: list[Row] = []

    def append(self, row: Row) -> None:
        """Adds a row, and forgets the oldest beyond the limit."""
        self.rows = [*self.rows[-(self._limit - 1) :], row] if self._limit > 1 else [row]

    def drawable(self) -> list[int]:
        """Indices of rows that have a next one and do not follow a terminal one."""
        last = len(self.rows) - 1
        return [at for at in range(last) if at == 0 or not self.rows[at - 1].terminal]

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observations (B, D), actions, rewards (B, 1), next observations (B, D), and 1 for rows that are not terminal.

        Without replacement where there are `size` rows to draw from.
        """
        known = self.drawable()
        drawn = rng.choice(known, size, replace=len(known) < size)
        rows, following = [self.rows[at] for at in drawn], [self.rows[at + 1] for at in drawn]
        columns = (
            [row.observation for row in rows],
            [[row.action] for row in rows],
            [[row.reward] for row in rows],
            [row.observation for row in following],
            [[0.0 if row.terminal else 1.0] for row in rows],
        )
        found = [torch.tensor(np.array(column), dtype=torch.float32) for column in columns]
        return found[0], found[1], found[2], found[3], found[4]


class Actor(nn.Module):
    """Observation (B, D) → action (B, 1) in 0 … 1."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(num_inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()),
            *(nn.Linear(_HIDDEN, 1), nn.Sigmoid()),
        )

    def forward(self, observation: Tensor) -> Tensor:
        """The action."""
        found: Tensor = self.layers(observation)
        return found


class Critic(nn.Module):
    """Observation (B, D) and action (B, 1) → expected reward (B, 1)."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.observation, self.action = nn.Linear(num_inputs, _HIDDEN), nn.Linear(1, _HIDDEN)
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """The value."""
        found: Tensor = self.layers(self.observation(observation) + self.action(action))
        return found


class Agent:
    """Actor and critic with slowly following targets, on the CPU.

    Rewards are centred by a moving average of the means of the batches.

    Args:
        num_inputs: D, components of an observation.
        memory: rows that are kept.
        seed: of weights, actions and draws.
    """

    def __init__(self, num_inputs: int, memory: int, seed: int) -> None:
        self.replay, self._rng = Replay(memory), np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.actor, self._actor_target = Actor(num_inputs), Actor(num_inputs)
            self.critic, self._critic_target = Critic(num_inputs), Critic(num_inputs)
        self._actor_target.load_state_dict(self.actor.state_dict())
        self._critic_target.load_state_dict(self.critic.state_dict())
        self._actor_steps = torch.optim.Adam(self.actor.parameters(), lr=_ACTOR_LR)
        self._critic_steps = torch.optim.Adam(self.critic.parameters(), lr=_CRITIC_LR)
        self._average: float | None = None
        self.updates = 0

    def random_action(self) -> float:
        """Uniform in 0 … 1."""
        return float(self._rng.uniform())

    @torch.no_grad()
    def action(self, observation: np.ndarray, sigma: float) -> float:
        """The actor's action for (D,), with noise: a normal of standard deviation `sigma`, truncated to 0 … 1."""
        mean = float(self.actor(torch.tensor(observation, dtype=torch.float32)[None])[0, 0])
        low, high = ndtr(-mean / sigma), ndtr((1 - mean) / sigma)
        drawn = mean + sigma * float(ndtri(low + self._rng.uniform() * (high - low)))
        return min(max(drawn, 0.0), 1.0) if np.isfinite(drawn) else min(max(mean, 0.0), 1.0)

    def update(self) -> None:
        """One step of critic and actor on a batch from the replay memory."""
        observation, action, reward, following, goes_on = self.replay.sample(_BATCH, self._rng)
        mean = float(reward.mean())
        self._average = mean if self._average is None else self._average + _AVERAGE * (mean - self._average)
        with torch.no_grad():
            value = self._critic_target(following, self._actor_target(following))
            wanted = reward - self._average + _DISCOUNT * goes_on * value
        self._critic_steps.zero_grad()
        nn.functional.mse_loss(self.critic(observation, action), wanted).backward()  # type: ignore[no-untyped-call]
        self._critic_steps.step()
        self._actor_steps.zero_grad()
        (-self.critic(observation, self.actor(observation)).mean()).backward()
        self._actor_steps.step()
        with torch.no_grad():
            for target, source in ((self._actor_target, self.actor), (self._critic_target, self.critic)):
                for old, new in zip(target.parameters(), source.parameters(), strict=True):
                    old.lerp_(new, _TARGET_RATE)
        self.updates += 1
