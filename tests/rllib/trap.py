"""An environment in which a reward model that was right at first leads its policy astray."""

from typing import Any

import gymnasium as gym
import numpy as np

TURN = 1.0
STEP = 0.25


class Trap(gym.Env[np.ndarray, int]):
    """One walks left or right on a line. The reward grows with x up to x = 1 and falls twice as steeply after it.

    Random steps seldom come past the turn, so that early answers teach "further right is better".
    """

    observation_space = gym.spaces.Box(-20.0, 20.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self._x = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._x = -2.0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._x += STEP if action else -STEP
        reward = self._x if self._x < TURN else TURN - 2 * (self._x - TURN)
        return self._observation(), reward, False, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self._x], np.float32)
