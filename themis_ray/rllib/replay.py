"""Replay as flat columns, with the true and the predicted reward side by side.

RLlib's episode replay builds one Python object per sampled row, ten times the cost of the update itself; here a
sample is one fancy index per column (docs/performance.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["ReplayBuffer", "Transitions"]

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
RELABEL_CHUNK_BYTES = 2**28


@dataclass(frozen=True)
class Transitions:
    """N consecutive or unrelated steps.

    Args:
        observations: (N, *observation_shape), before each step.
        next_observations: (N, *observation_shape), after it.
        actions: (N, *action_shape), as the policy gave them (Box: normalised to [-1, 1]).
        true_rewards: (N,) float32, from the environment.
        terminated: (N,) bool, whether the step ended its episode for good.
    """

    observations: NDArray[Any]
    next_observations: NDArray[Any]
    actions: NDArray[Any]
    true_rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.true_rewards)


class ReplayBuffer:
    """Ring buffer of transitions as NumPy columns.

    Args:
        capacity: Transitions kept; the oldest are overwritten.
        observation_space: Gives the shape and dtype of an observation; uint8 stays uint8.
        action_space: Gives the shape of an action; Discrete is stored as int64.
    """

    _COLUMNS = ("observations", "next_observations", "actions", "true_rewards", "predicted_rewards", "terminated")

    def __init__(self, capacity: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        assert observation_space.shape is not None
        self.capacity = capacity
        self.size = 0
        self._position = 0
        shape = observation_space.shape
        is_discrete = isinstance(action_space, gym.spaces.Discrete)
        action_shape = () if is_discrete else tuple(action_space.shape or ())
        # np.zeros maps pages on first write, so a large capacity costs nothing until it is used.
        self.observations = np.zeros((capacity, *shape), observation_space.dtype)
        self.next_observations = np.zeros((capacity, *shape), observation_space.dtype)
        self.actions = np.zeros((capacity, *action_shape), np.int64 if is_discrete else np.float32)
        self.true_rewards = np.zeros(capacity, np.float32)
        self.predicted_rewards = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.float32)

    @classmethod
    def fitting_capacity(
        cls, capacity: int, max_bytes: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> int:
        """Return `capacity`, or as many transitions as `max_bytes` hold where these are fewer, but one at least."""
        one = cls(1, observation_space, action_space)
        num_bytes: int = sum(getattr(one, name).nbytes for name in cls._COLUMNS)
        return min(capacity, max(1, max_bytes // num_bytes))

    def add(self, transitions: Transitions, predicted_rewards: NDArray[np.float32]) -> None:
        """Append N <= capacity transitions with their predicted rewards, shape (N,)."""
        rows = (self._position + np.arange(len(transitions))) % self.capacity
        self.observations[rows] = transitions.observations
        self.next_observations[rows] = transitions.next_observations
        self.actions[rows] = transitions.actions
        self.true_rewards[rows] = transitions.true_rewards
        self.terminated[rows] = transitions.terminated
        self.predicted_rewards[rows] = predicted_rewards
        self._position = int((self._position + len(rows)) % self.capacity)
        self.size = min(self.capacity, self.size + len(rows))

    def sample_rows(self, num_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw row numbers uniformly with replacement, shape (num_rows,)."""
        return rng.integers(self.size, size=num_rows)

    def n_step(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float32], n: int, gamma: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Follow rows for up to n steps in all (Sutton 1988; without correction for the policy, as in Rainbow).

        A row is followed by the next one if it ended in the observation in which that one began and not for good; rows
        that break off sooner count fewer steps.

        Args:
            rows: (N,) where to begin.
            rewards: Column of the replay that is paid.
            n: Most steps.
            gamma: Discount factor.

        Returns:
            (N,) sums of gamma^k rewards, (N,) the last row of each, and (N,) how many steps it comes after the first.
        """
        returns, last = rewards[rows], rows.copy()
        num_more = np.zeros(len(rows), np.int64)
        active = np.arange(len(rows))
        for k in range(1, n):
            following = (last[active] + 1) % self.size
            ends, begins = self.next_observations[last[active]], self.observations[following]
            is_same = (ends == begins).all(axis=tuple(range(1, ends.ndim))) & (following != rows[active])
            goes_on = is_same & (self.terminated[last[active]] == 0)
            active, following = active[goes_on], following[goes_on]
            returns[active] += gamma**k * rewards[following]
            last[active], num_more[active] = following, k
        return returns, last, num_more

    def relabel(self, predict: Predict) -> None:
        """Recompute every predicted reward with `predict(observations, actions) -> (N,)`, in large batches."""
        chunk_size = max(1, RELABEL_CHUNK_BYTES // max(1, self.observations[:1].nbytes))
        for start in range(0, self.size, chunk_size):
            rows = slice(start, min(self.size, start + chunk_size))
            self.predicted_rewards[rows] = predict(self.observations[rows], self.actions[rows])

    def get_state(self) -> dict[str, Any]:
        """Return copies of the filled part of every column, and where the next row goes."""
        columns = {name: getattr(self, name)[: self.size].copy() for name in self._COLUMNS}
        return {**columns, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_state` returned, bit for bit; the newest rows where another buffer's capacity differs."""
        num_rows, position = len(state["true_rewards"]), state["position"]
        rows: slice | NDArray[np.int64] = slice(num_rows)
        if num_rows > self.capacity or (num_rows < self.capacity and position < num_rows):
            rows = np.roll(np.arange(num_rows), -position)[-self.capacity :]  # oldest first
            position = len(rows) % self.capacity
        self._position = position
        self.size = min(num_rows, self.capacity)
        for name in self._COLUMNS:
            getattr(self, name)[: self.size] = state[name][rows]
