"""What a segment looks like: from observations back to frames.

Frames are drawn from what a segment holds, so they need no simulator that was there when it was recorded. That works
where observations are images, where they are MiniGrid's view, and where they tell the whole state (classic control).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from numpy.typing import NDArray

from themis_ray.data import Segment
from themis_ray.envs import EnvConfig, find_family, get_env_spec, make_env
from themis_ray.envs.observations import MIN_IMAGE_SIDE
from themis_ray.errors import ConfigError

__all__ = ["FrameRenderer", "check_frames", "segment_frames"]

GRID_FAMILIES = ("minigrid", "babyai")
TILE_SIZE = 32
# The agent stands at the middle of the lowest row of its view and looks up.
LOOKING_UP = 3

AnyArray = NDArray[Any]


def _pendulum_state(observation: AnyArray) -> AnyArray:
    cosine, sine, speed = observation
    return np.array([np.arctan2(sine, cosine), speed])


def _acrobot_state(observation: AnyArray) -> AnyArray:
    cosine_1, sine_1, cosine_2, sine_2, speed_1, speed_2 = observation
    return np.array([np.arctan2(sine_1, cosine_1), np.arctan2(sine_2, cosine_2), speed_1, speed_2])


def _same_state(observation: AnyArray) -> AnyArray:
    return observation


# By class, so that every way to name the environment finds it: (numbers of an observation, observation to state).
_STATES: dict[type, tuple[int, Callable[[AnyArray], AnyArray]]] = {
    PendulumEnv: (3, _pendulum_state),
    AcrobotEnv: (6, _acrobot_state),
    CartPoleEnv: (4, _same_state),
    MountainCarEnv: (2, _same_state),
    Continuous_MountainCarEnv: (2, _same_state),
}


def segment_frames(segment: Segment, env_config: EnvConfig) -> NDArray[np.uint8]:
    """Returns one frame for each step of a segment, what was seen before the action, (L, H, W, 3) uint8.

    See `FrameRenderer`, which is faster for many segments.

    Raises:
        ConfigError: Frames of this environment cannot be drawn.
    """
    renderer = FrameRenderer(env_config)
    try:
        return renderer.frames(segment)
    finally:
        renderer.close()


def check_frames(env_config: EnvConfig) -> None:
    """Checks that frames of an environment can be drawn.

    Raises:
        ConfigError: They cannot; the message says of which they can.
    """
    kind = get_env_spec(env_config).observation_kind
    if kind == "image" or (kind == "grid" and _family(env_config) in GRID_FAMILIES):
        return
    if kind == "vector":
        env = make_env(env_config)
        is_known = type(env.unwrapped) in _STATES
        env.close()  # type: ignore[no-untyped-call]
        if is_known:
            return
    raise _unsupported(env_config)


class FrameRenderer:
    """Draws the frames of segments of one environment.

    * Images: the newest frame of a stack, that is the last 3 channels where their number is a multiple of 3, else the
      last one as gray. Numbers other than uint8 are brightness, from 0 to 1, or from 0 to 255 where one is above 1.
    * MiniGrid and BabyAI: the agent's view, drawn with MiniGrid's own tiles.
    * Classic control: the simulator drawn in the state that the observation tells. The torque arrow of Pendulum is that
      of the action before, in [-1, 1] as policies give it; the first frame has none.

    Absorbing states of a fixed horizon are black. A renderer is not safe for use by several threads.

    Args:
        env_config: Where segments come from.
    """

    def __init__(self, env_config: EnvConfig) -> None:
        self.env_config = env_config
        self._env: Any = None

    def frames(self, segment: Segment, steps: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Returns the frames of some steps, (N, H, W, 3) uint8.

        Args:
            segment: What is drawn.
            steps: Which steps of the segment, from 0; None for all.

        Raises:
            ConfigError: Frames of this environment cannot be drawn.
        """
        chosen = np.arange(len(segment)) if steps is None else np.asarray(steps, np.int64)
        observations = segment.observations
        if observations.ndim == 4 and min(observations.shape[1:3]) >= MIN_IMAGE_SIDE:
            return _newest_images(observations[chosen])
        if observations.ndim == 4 and _family(self.env_config) in GRID_FAMILIES:
            return np.stack([_draw_grid(grid) for grid in observations[chosen]])
        if observations.ndim == 2:
            return np.stack([self._draw_state(segment, int(step)) for step in chosen])
        raise _unsupported(self.env_config)

    def close(self) -> None:
        """Closes the simulator, if one was needed."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _draw_state(self, segment: Segment, step: int) -> NDArray[np.uint8]:
        simulator = self._simulator()
        size, to_state = _STATES[type(simulator)]
        observation = segment.observations[step].astype(np.float64)
        simulator.state = to_state(observation[:size])
        if isinstance(simulator, PendulumEnv):
            simulator.last_u = None if step == 0 else _torque(segment.actions[step - 1], simulator)
        frame = np.array(simulator.render(), np.uint8)
        is_absorbing = len(observation) > size and observation[size] == 1.0
        return np.zeros_like(frame) if is_absorbing else frame

    def _simulator(self) -> Any:
        if self._env is None:
            check_frames(self.env_config)
            self._env = make_env(self.env_config, render_mode="rgb_array")
        # Past the wrappers: they refuse to render before a reset.
        return self._env.unwrapped


def _torque(action: AnyArray, simulator: PendulumEnv) -> float:
    return float(np.clip(action.reshape(-1)[0], -1.0, 1.0)) * simulator.max_torque


def _newest_images(observations: AnyArray) -> NDArray[np.uint8]:
    """Returns (N, H, W, 3) uint8 of (N, H, W, channels)."""
    num_channels = observations.shape[-1]
    newest = observations[..., -3:] if num_channels % 3 == 0 else observations[..., -1:]
    if newest.dtype != np.uint8:
        scale = 255.0 if newest.max(initial=0.0) <= 1.0 else 1.0
        newest = np.clip(np.rint(newest * scale), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(newest, (*newest.shape[:-1], 3)))


def _draw_grid(view: AnyArray) -> NDArray[np.uint8]:
    """Returns an agent's view (width, height, 3) as tiles, (height * 32, width * 32, 3)."""
    from minigrid.core.grid import Grid  # Slow to import and needed by two families only.

    width, height = view.shape[:2]
    if not view.any():
        return np.zeros((height * TILE_SIZE, width * TILE_SIZE, 3), np.uint8)
    grid, is_seen = Grid.decode(view)
    frame: NDArray[np.uint8] = grid.render(TILE_SIZE, (width // 2, height - 1), LOOKING_UP, is_seen)
    return frame


def _family(env_config: EnvConfig) -> str:
    return find_family(env_config.id.rpartition(":")[2]).name


def _unsupported(env_config: EnvConfig) -> ConfigError:
    return ConfigError(
        f"frames of {env_config.id} cannot be drawn from its observations. These work: environments that observe "
        "images (Atari, CarRacing), MiniGrid, BabyAI, and Pendulum, CartPole, MountainCar, MountainCarContinuous and "
        "Acrobot."
    )
