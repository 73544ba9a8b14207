"""An environment of a user's own: observations of several parts, several buttons, episodes of any length."""

from typing import Any

import gymnasium as gym
import numpy as np

SIDE = 40
NUM_BUTTONS = (3, 3, 2)


class Camera(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """One moves a bright square and is paid for what is seen of it on the right; an episode ends by chance."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            picture=gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8),
            speed=gym.spaces.Box(-1.0, 1.0, (5,), np.float32),
        )
        self.action_space = gym.spaces.MultiDiscrete(NUM_BUTTONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._corner = self.np_random.integers(0, SIDE - 8, 2)
        self._num_left = int(self.np_random.integers(5, 80))
        return self._observe(np.zeros(3, np.int64)), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action)), action
        self._corner = np.clip(self._corner + 2 * (np.asarray(action)[:2] - 1), 0, SIDE - 8)
        self._num_left -= 1
        reward = float(self._corner[1]) / SIDE
        return self._observe(np.asarray(action)), reward, self._num_left == 0, False, {}

    def _observe(self, action: np.ndarray) -> dict[str, np.ndarray]:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        row, column = self._corner
        picture[row : row + 8, column : column + 8] = 255
        speed = np.zeros(5, np.float32)
        speed[: len(action)] = action / 2
        return {"picture": picture, "speed": speed}
