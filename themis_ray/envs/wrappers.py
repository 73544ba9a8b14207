"""Wrappers that give every environment plain observations and actions and, if asked, a fixed horizon."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from themis_ray.envs.observations import MixedBox, convert_space, image_parts
from themis_ray.errors import ConfigError

__all__ = [
    "AnyEnv",
    "FixedHorizon",
    "first_choices",
    "num_choices",
    "prepare_atari",
    "standardise_actions",
    "standardise_observations",
]

AnyEnv = gym.Env[Any, Any]

ATARI_SCREEN_SIZE = 84
ATARI_FRAME_SKIP = 4
ATARI_MOST_NOOPS = 30


class FixedHorizon(gym.Wrapper[Any, Any, Any, Any]):
    """Makes every episode exactly `horizon` env steps long.

    Where an environment ends early on failure (CartPole) or on success (MiniGrid), the length of an episode
    tells how good it was: a learner that is paid any positive reward survives, one that is paid any negative
    reward gives up, whatever the teacher said. A learned reward is then judged by its sign and not by what it
    learned. So an episode that ends early continues in an absorbing state with reward 0 until `horizon` env steps
    are over, then the episode is truncated. The simulator is not stepped meanwhile, the true return is unchanged,
    and `terminated` is never true, so that a learner bootstraps at the horizon.

    All absorbing states look the same: vectors, also those that hold images, get one more number, 0 while the episode
    goes on, and are 0 but for a 1 there once it is over; images and grids are all 0. Without the mark a network has to
    tell the last state before a fall from the first after it (CartPole, 60 000 env steps, 100 labels: true return 45
    without it).

    `info["is_absorbing"]` is true for env steps that began in the absorbing state.

    See Kostrikov et al. 2019, "Discriminator-Actor-Critic" (arXiv 1809.02925), the seals suite
    (HumanCompatibleAI/seals), and "Limitations on Horizon Length" in the documentation of imitation.

    Args:
        env: The environment, with observations as `standardise_observations` leaves them; its own time limit may be
            shorter, equal or longer.
        horizon: Env steps per episode.

    Raises:
        ConfigError: `horizon` is not positive.
    """

    def __init__(self, env: AnyEnv, horizon: int) -> None:
        if horizon < 1:
            raise ConfigError(f"horizon {horizon} is not an episode length. Give a whole number of env steps >= 1.")
        super().__init__(env)
        self.horizon = horizon
        self._num_env_steps = 0
        self._is_absorbing = False
        inner = env.observation_space
        assert isinstance(inner, spaces.Box), inner
        self._has_mark = len(inner.shape) == 1
        if self._has_mark:
            low, high = np.append(inner.low, np.float32(0)), np.append(inner.high, np.float32(1))
            # An absorbing state is 0 in every other number too.
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            layout = image_parts(inner)
            self.observation_space = MixedBox(low, high, layout) if layout else spaces.Box(low, high, dtype=np.float32)
        self._absorbing_observation = np.zeros(self.observation_space.shape or (), inner.dtype)
        if self._has_mark:
            self._absorbing_observation[-1] = 1

    def _live(self, observation: NDArray[Any]) -> NDArray[Any]:
        return np.append(observation, np.float32(0)) if self._has_mark else observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; `seed` and `options` go to the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._num_env_steps = 0
        self._is_absorbing = False
        return self._live(observation), {**info, "is_absorbing": False}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the environment, or stays in the absorbing state where its episode is over."""
        self._num_env_steps += 1
        is_truncated = self._num_env_steps >= self.horizon
        if self._is_absorbing:
            return self._absorbing_observation.copy(), 0.0, False, is_truncated, {"is_absorbing": True}
        observation, reward, is_inner_terminated, is_inner_truncated, info = self.env.step(action)
        self._is_absorbing = is_inner_terminated or is_inner_truncated
        following = self._absorbing_observation.copy() if self._is_absorbing else self._live(observation)
        return following, float(reward), False, is_truncated, {**info, "is_absorbing": False}


class Standardise(gym.ObservationWrapper[Any, Any, Any]):
    """Maps observations into a Box by one function.

    Args:
        env: The environment.
        convert: From an observation of `env` to an array of `observation_space`.
        observation_space: The new space.
    """

    def __init__(self, env: AnyEnv, convert: Callable[[Any], NDArray[Any]], observation_space: spaces.Box) -> None:
        super().__init__(env)
        self._convert = convert
        self.observation_space = observation_space

    def observation(self, observation: Any) -> NDArray[Any]:
        """Returns the converted observation."""
        return self._convert(observation)


class _ShiftAction(gym.ActionWrapper[Any, Any, Any]):
    """Lets a Discrete action space that starts elsewhere start at 0."""

    def __init__(self, env: AnyEnv, space: spaces.Discrete[Any]) -> None:
        super().__init__(env)
        self._start = space.start
        self.action_space = spaces.Discrete(int(space.n))

    def action(self, action: Any) -> Any:
        return action + self._start


class _JoinActions(gym.ActionWrapper[Any, Any, Any]):
    """Lets one MultiDiscrete that starts at 0 stand for a space made of whole numbers."""

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        self.action_space = spaces.MultiDiscrete(num_choices(env.action_space))

    def action(self, action: Any) -> Any:
        return _to_own_action(self.env.action_space, iter(np.asarray(action).tolist()))


def num_choices(space: spaces.Space[Any], whole: spaces.Space[Any] | None = None) -> list[int]:
    """Returns how many values each number of an action can take.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these.
        whole: The space that it is a part of.

    Raises:
        ConfigError: It is another space.
    """
    whole = space if whole is None else whole
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiBinary():
            return [2] * int(np.prod(space.shape))
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec.ravel()]
        case spaces.Dict():
            return [n for part in space.spaces.values() for n in num_choices(part, whole)]
        case spaces.Tuple():
            return [n for part in space.spaces for n in num_choices(part, whole)]
    raise ConfigError(
        f"action space {whole} is not supported: {space} is neither floats nor choices. "
        "Supported: Box of floats, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of the last three. "
        "Wrap the environment so that it takes one of these."
    )


def first_choices(env: AnyEnv) -> tuple[int, ...]:
    """Returns what the zeros of an action are in the environment's own units, number by number.

    Args:
        env: As `standardise_actions` leaves it, or wrapped further, with whole numbers as actions.
    """
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, _ShiftAction | _JoinActions):
            return tuple(_starts(layer.env.action_space))
        layer = layer.env
    return tuple(_starts(env.action_space))


def _starts(space: spaces.Space[Any]) -> list[int]:
    match space:
        case spaces.Dict():
            return [start for part in space.spaces.values() for start in _starts(part)]
        case spaces.Tuple():
            return [start for part in space.spaces for start in _starts(part)]
        case spaces.Discrete():
            return [int(space.start)]
        case spaces.MultiDiscrete():
            return [int(start) for start in space.start.ravel()]
    return [0] * int(np.prod(space.shape or ()))


def _to_own_action(space: spaces.Space[Any], numbers: Iterator[int]) -> Any:
    """Returns an action of `space`, made of the next numbers."""
    match space:
        case spaces.Dict():
            return {key: _to_own_action(part, numbers) for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_to_own_action(part, numbers) for part in space.spaces)
        case spaces.Discrete():
            return np.int64(next(numbers) + int(space.start))
    assert isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete), space
    start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    own = list(itertools.islice(numbers, int(np.prod(space.shape))))
    return (np.reshape(own, space.shape) + start).astype(space.dtype)


def standardise_observations(env: AnyEnv) -> AnyEnv:
    """Returns `env` with a Box observation space: float32 of rank 1, or rank 3 as float32 or uint8.

    `convert_space` says what becomes what.

    Raises:
        ConfigError: The space holds parts that have no fixed-size vector, such as Text, Graph or Sequence.
    """
    conversion = convert_space(env.observation_space)
    return env if conversion is None else Standardise(env, conversion.convert, conversion.space)


def standardise_actions(env: AnyEnv) -> AnyEnv:
    """Returns `env` with a Box, zero-based Discrete, or zero-based MultiDiscrete action space of rank 1.

    MultiBinary, other MultiDiscrete, and Dict and Tuple of whole numbers, nested too, become one MultiDiscrete: one
    number for each of theirs, in gymnasium's order.

    Raises:
        ConfigError: The action space is of another type.
    """
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return env if space.start == 0 else _ShiftAction(env, space)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1 and not np.any(space.start):
        return env
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return env
    return _JoinActions(env)


def prepare_atari(env: AnyEnv) -> AnyEnv:
    """Returns an Atari environment with the usual observations, before they are stacked.

    Screens become gray, (84, 84) uint8, one for four of them, the brighter pixels of the last two (Mnih et al. 2015;
    the end of a life is not the end of an episode). RAM observations, (128,) uint8, become bytes / 255 as float32.

    Args:
        env: Made with `frameskip=1` unless it observes the RAM.
    """
    if len(env.observation_space.shape or ()) == 1:
        shape = env.observation_space.shape
        return Standardise(env, _ram_to_float32, spaces.Box(0.0, 1.0, shape, np.float32))
    inner: Any = env.unwrapped
    # Board games have no "do nothing", with which episodes otherwise begin up to 30 times.
    most_noops = ATARI_MOST_NOOPS if inner.get_action_meanings()[0] == "NOOP" else 0
    return gym.wrappers.AtariPreprocessing(env, most_noops, ATARI_FRAME_SKIP, ATARI_SCREEN_SIZE)


def _ram_to_float32(observation: NDArray[np.uint8]) -> NDArray[np.float32]:
    return observation.astype(np.float32) / np.float32(255)
