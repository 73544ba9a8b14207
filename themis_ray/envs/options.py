"""What a user may add to an environment: own wrappers, stacked frames, normalised observations."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from themis_ray.envs.observations import MixedBox
from themis_ray.envs.wrappers import AnyEnv, Standardise
from themis_ray.errors import ConfigError

__all__ = ["apply_wrappers", "normalize_observations", "stack_frames"]

NUM_RANDOM_STEPS = 1000
MIN_STD = 1e-3
Array = NDArray[Any]

_STATISTICS: dict[str, tuple[Array, Array]] = {}


def apply_wrappers(env: AnyEnv, paths: Sequence[str]) -> AnyEnv:
    """Returns `env` inside the wrappers that `module:Name` names, the first one innermost.

    Raises:
        ConfigError: There is no such thing, or it makes no environment of this one.
    """
    for path in paths:
        module_name, _, name = path.rpartition(":")
        try:
            wrapper = getattr(importlib.import_module(module_name), name)
            env = wrapper(env)
        except Exception as error:  # the user's own code
            raise ConfigError(
                f"env.wrappers: {path!r} cannot be applied ({type(error).__name__}: {error}). Give module:Name of a "
                "class or function that takes an environment and returns one."
            ) from error
        if not isinstance(env, gym.Env):
            raise ConfigError(
                f"env.wrappers: {path!r} returns a {type(env).__name__}. It has to return a gymnasium.Env."
            )
    return env


def stack_frames(env: AnyEnv, num_frames: int) -> AnyEnv:
    """Returns `env` with its last `num_frames` observations in one, the newest last; at a reset all are the first.

    Vectors are joined, images and grids get as many times the channels.

    Args:
        env: With observations as `standardise_observations` leaves them.
        num_frames: At least 1.

    Raises:
        ConfigError: The observation is a vector that holds images.
    """
    space = env.observation_space
    if num_frames == 1:
        return env
    assert isinstance(space, spaces.Box), space
    if isinstance(space, MixedBox):
        raise ConfigError(
            f"env.frame_stack={num_frames} does not go with observations that hold images beside other parts. Stack "
            "them in a wrapper of your own (env.wrappers)."
        )
    stacked: AnyEnv = gym.wrappers.FrameStackObservation(env, num_frames)
    join = _join_vectors if len(space.shape) == 1 else _join_channels
    low, high = (join(np.stack([bound] * num_frames)) for bound in (space.low, space.high))
    dtype: Any = space.dtype
    return Standardise(stacked, join, spaces.Box(low, high, dtype=dtype.type))


def normalize_observations(env: AnyEnv, key: str, make: Callable[[], AnyEnv]) -> AnyEnv:
    """Returns `env` with vectors of mean 0 and standard deviation 1 over a thousand random steps.

    Both are found once and stay, so that an observation that was stored early means the same later, as a reward model
    needs. Numbers that hardly change are divided by 0.001 at least.

    Args:
        env: With observations as `standardise_observations` leaves them.
        key: Names the environment; the same key is measured once in a process.
        make: Makes another one to measure.

    Raises:
        ConfigError: Observations are no vectors.
    """
    space = env.observation_space
    if isinstance(space, MixedBox) or len(space.shape or ()) != 1:
        raise ConfigError(
            "env.normalize_observations=true is for vectors. Images and grids are scaled inside the networks; leave it "
            "out."
        )
    if key not in _STATISTICS:
        _STATISTICS[key] = _measure(make())
    mean, std = _STATISTICS[key]
    return Standardise(
        env,
        lambda observation: ((observation - mean) / std).astype(np.float32),
        spaces.Box(-np.inf, np.inf, space.shape, np.float32),
    )


def _measure(env: AnyEnv) -> tuple[Array, Array]:
    """Returns mean and standard deviation of each number, and closes the environment."""
    actions = env.action_space  # some environments make another at every reset, which is not seeded
    actions.seed(0)
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(NUM_RANDOM_STEPS):
        seen.append(observation)
        observation, _, terminated, truncated, _ = env.step(actions.sample())
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()  # type: ignore[no-untyped-call]
    rows = np.stack(seen)
    return rows.mean(axis=0), np.maximum(rows.std(axis=0), MIN_STD)


def _join_vectors(frames: Array) -> Array:
    return np.asarray(frames).reshape(-1)


def _join_channels(frames: Array) -> Array:
    """Returns (N, H, W, C) as (H, W, N * C)."""
    return np.ascontiguousarray(np.concatenate(list(frames), axis=-1))
