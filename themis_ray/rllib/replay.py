"""Replay as flat columns, with the true and the predicted reward side by side.

RLlib's episode replay builds one Python object per sampled row, ten times the cost of the update itself; here a
sample is one fancy index per column (docs/performance.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "ReplayBuffer", "Transitions"]

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
RELABEL_CHUNK_BYTES = 2**28


class Piece(NamedTuple):
    """Consecutive steps of one episode."""

    episode_id: str
    num_steps: int
    is_done: bool
    """Whether the episode ends with the last of them, for good or cut off."""


@dataclass(frozen=True)
class Transitions:
    """N consecutive or unrelated steps.

    Args:
        observations: (N, *observation_shape), before each step.
        next_observations: (N, *observation_shape), after it.
        actions: (N, *action_shape), as the policy gave them (Box: normalised to [-1, 1]).
        true_rewards: (N,) float32, from the environment.
        terminated: (N,) bool, whether the step ended its episode for good.
        pieces: Which steps follow each other, in order; without them no step is known to follow another.
    """

    observations: NDArray[Any]
    next_observations: NDArray[Any]
    actions: NDArray[Any]
    true_rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    pieces: Sequence[Piece] = ()

    def __len__(self) -> int:
        return len(self.true_rewards)


class ReplayBuffer:
    """Ring buffer of transitions as NumPy columns.

    Args:
        capacity: Transitions kept; the oldest are overwritten.
        observation_space: Gives the shape and dtype of an observation; uint8 stays uint8.
        action_space: Gives the shape of an action; Discrete is stored as int64.
    """

    _COLUMNS = (
        *("observations", "next_observations", "actions", "true_rewards", "predicted_rewards", "terminated"),
        "rows_to_next",
    )

    def __init__(self, capacity: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        assert observation_space.shape is not None
        self.capacity = capacity
        self.size = 0
        self._num_added = 0
        self._newest: dict[str, int] = {}  # of each running episode, as a count of rows added
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
        self.rows_to_next = np.zeros(capacity, np.int64)  # 0: nothing follows, as yet

    @property
    def _position(self) -> int:
        return self._num_added % self.capacity

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
        self.rows_to_next[rows] = 0
        self._link(transitions.pieces)
        self._num_added += len(rows)
        self.size = min(self.capacity, self.size + len(rows))

    def _link(self, pieces: Sequence[Piece]) -> None:
        """Note which of the rows that are being added follows which; several environments take turns in the replay."""
        first = self._num_added
        stop = first + sum(piece.num_steps for piece in pieces)
        for episode_id, num_steps, is_done in pieces:
            last = first + num_steps - 1
            self.rows_to_next[np.arange(first, last) % self.capacity] = 1
            before = self._newest.pop(episode_id, None)
            if before is not None and stop - before <= self.capacity:  # it is still there
                self.rows_to_next[before % self.capacity] = first - before
            if not is_done:
                self._newest[episode_id] = last
            first = last + 1

    def sample_rows(self, num_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw row numbers uniformly with replacement, shape (num_rows,)."""
        return rng.integers(self.size, size=num_rows)

    def n_step(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float32], n: int, gamma: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Follow rows for up to n steps in all (Sutton 1988; without correction for the policy, as in Rainbow).

        Rows whose episode ends sooner, or goes on after the newest row, count fewer steps.

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
            active = active[self.rows_to_next[last[active]] > 0]
            following = (last[active] + self.rows_to_next[last[active]]) % self.capacity
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
        """Put back what `get_state` returned, bit for bit; the newest rows where another buffer's capacity differs.

        Episodes that were running go on nowhere.
        """
        num_rows, position = len(state["true_rewards"]), state["position"]
        rows: slice | NDArray[np.int64] = slice(num_rows)
        if num_rows > self.capacity or (num_rows < self.capacity and position < num_rows):
            rows = np.roll(np.arange(num_rows), -position)[-self.capacity :]  # oldest first
            position = len(rows) % self.capacity
        self._num_added, self._newest = position, {}
        self.size = min(num_rows, self.capacity)
        self.rows_to_next[: self.size] = 0  # for states without it
        for name in self._COLUMNS:
            if name in state:
                getattr(self, name)[: self.size] = state[name][rows]
