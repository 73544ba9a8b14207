"""An environment that shows what a test wants to be seen, and segments of it that can be replayed."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from themis_ray.data import Origin, Segment
from themis_ray.envs import EnvConfig

LANTERN = EnvConfig(id="lantern:Lantern")
SIDE = 8


class Lantern(gym.Env[Any, Any]):
    """A picture in the colour that the seed of the reset names, with the number of the step in its lowest row."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0.0, 255.0, (4,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, fault: str | None = None) -> None:
        self.render_mode = render_mode
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        if self.fault == "in the dark":
            raise RuntimeError("no reset")
        self.number, self.step_number = seed or 0, 0
        return lantern_observation(self.number, 0), {}

    def step(self, action):
        self.step_number += 1
        return lantern_observation(self.number, self.step_number), 0.0, False, False, {}

    def render(self):
        if self.fault == "broken":
            raise RuntimeError("no\ndisplay")
        picture = lantern_frame(self.number, self.step_number)
        faulty = {"nothing": None, "gray": picture[..., 0], "brightness": picture.astype(np.float32)}
        return picture if self.fault is None else faulty[self.fault]


def lantern_observation(number: int, step: int) -> np.ndarray:
    """Returns red, green and blue of a number below 2^24, and the step."""
    return np.array([number >> 16 & 255, number >> 8 & 255, number & 255, step], np.float32)


def lantern_frame(number: int, step: int) -> np.ndarray:
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = lantern_observation(number, step)[:3]
    picture[-1] = step
    return picture


def lantern_segment(number: int, rewards: np.ndarray) -> Segment:
    """Returns the first steps of the episode with this number as its seed."""
    observations = np.stack([lantern_observation(number, step) for step in range(len(rewards))])
    actions = np.zeros((len(rewards), 1), np.float32)
    return Segment.create(LANTERN.id, str(number), 0, observations, actions, rewards, Origin(number, actions[:0]))
