"""What the numbers of an observation are called, for people who watch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from themis_ray.envs.mujoco_names import mujoco_names
from themis_ray.envs.observations import MixedBox
from themis_ray.envs.wrappers import AnyEnv, FixedHorizon

__all__ = ["observation_names"]

Names = tuple[str, ...]

ABSORBING_NAME = "episode is over"
MOUNTAIN_CAR = ("position", "velocity")
LUNAR_LANDER = (
    *("x", "y", "x velocity", "y velocity", "angle", "angular velocity"),
    *("left leg touches", "right leg touches"),
)
BIPEDAL_WALKER = (
    *("hull angle", "hull angular velocity", "x velocity", "y velocity"),
    *("hip 1 angle", "hip 1 speed", "knee 1 angle", "knee 1 speed", "leg 1 touches"),
    *("hip 2 angle", "hip 2 speed", "knee 2 angle", "knee 2 speed", "leg 2 touches"),
    *(f"lidar {number}" for number in range(10)),
)

# By id without its version; from the documentation of gymnasium. Discrete spaces are one-hot.
OBSERVATION_NAMES: dict[str, Names] = {
    "CartPole": ("cart position", "cart velocity", "pole angle", "pole velocity"),
    "MountainCar": MOUNTAIN_CAR,
    "MountainCarContinuous": MOUNTAIN_CAR,
    "Pendulum": ("cos angle", "sin angle", "angular velocity"),
    "Acrobot": ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "velocity 1", "velocity 2"),
    "LunarLander": LUNAR_LANDER,
    "LunarLanderContinuous": LUNAR_LANDER,
    "BipedalWalker": BIPEDAL_WALKER,
    "BipedalWalkerHardcore": BIPEDAL_WALKER,
    "Blackjack": (
        *(f"player has {points}" for points in range(32)),
        *(f"dealer shows {points}" for points in range(11)),
        *("no usable ace", "usable ace"),
    ),
}

# MuJoCo bodies that observe more than their joints. Version 4 has more numbers at the end than version 5.
MUJOCO_OBSERVATION_NAMES: dict[str, Names] = {
    "Reacher": (
        *("cos joint 0", "cos joint 1", "sin joint 0", "sin joint 1", "target x", "target y"),
        *("joint 0 velocity", "joint 1 velocity"),
        *(f"fingertip to target {axis}" for axis in "xyz"),
    ),
    "Pusher": tuple(
        f"{part} {quantity}"
        for quantity in ("angle", "velocity")
        for part in (
            *("shoulder pan", "shoulder lift", "upper arm roll", "elbow flex"),
            *("forearm roll", "wrist flex", "wrist roll"),
        )
    )
    + tuple(f"{thing} {axis}" for thing in ("fingertip", "object", "goal") for axis in "xyz"),
    "InvertedDoublePendulum": (
        *("cart position", "sin hinge 1", "sin hinge 2", "cos hinge 1", "cos hinge 2"),
        *("cart velocity", "hinge 1 velocity", "hinge 2 velocity"),
        *("cart constraint force", "hinge 1 constraint force", "hinge 2 constraint force"),
    ),
}


def observation_names(env: AnyEnv, env_id: str, family: str) -> tuple[str, ...] | None:
    """Returns the names of the numbers of a vector observation, None where they are not known.

    They come from tables (classic control, Box2D), from the loaded model (MuJoCo), or from the keys and indices of a
    Dict space, such as dm_control's: "position 0". A Discrete space gives "state 3", Atari's RAM "byte 12". What the
    wrappers of `make_env` add is named too: that the episode is over under a fixed horizon, and of stacked
    observations how many steps ago each was.

    Args:
        env: Made by `make_env`.
        env_id: Its id.
        family: Name of its family.

    Returns:
        One name for each number of the observation; None for images, grids, vectors that hold images, and Boxes
        that nothing is known of.
    """
    space = env.observation_space
    if isinstance(space, MixedBox) or len(space.shape or ()) != 1:
        return None
    *wrappers, inner = _layers(env)
    names = _own_names(inner, env_id, family)
    for wrapper in reversed(wrappers):
        names = _through(wrapper, names)
    return names if names is not None and len(names) == math.prod(space.shape or ()) else None


def _layers(env: AnyEnv) -> Iterator[AnyEnv]:
    """Yields an environment's wrappers from the outermost on, and the environment itself last."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _own_names(inner: AnyEnv, env_id: str, family: str) -> Names | None:
    """Returns the names of what an environment without wrappers observes."""
    space = inner.observation_space
    name = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])
    count = math.prod(space.shape) if isinstance(space, spaces.Box) else 0
    if name in OBSERVATION_NAMES and family in ("classic", "box2d", "toy_text"):
        return OBSERVATION_NAMES[name]
    if family == "mujoco" and name in MUJOCO_OBSERVATION_NAMES:
        return MUJOCO_OBSERVATION_NAMES[name][:count]
    if family == "mujoco":
        return mujoco_names(inner, count)
    if family == "atari" and len(space.shape or ()) == 1:
        return tuple(f"byte {number}" for number in range(count))
    return _space_names(space)


def _through(wrapper: AnyEnv, names: Names | None) -> Names | None:
    """Returns the names of what a wrapper observes, given those of what is in it."""
    space = wrapper.observation_space
    if names is None:
        return _space_names(space)
    if isinstance(wrapper, FixedHorizon):
        return (*names, ABSORBING_NAME) if space.shape == (len(names) + 1,) else names
    if isinstance(wrapper, gym.wrappers.FrameStackObservation):
        count: int = wrapper.stack_size
        ages = [f", {age} ago" if age else "" for age in range(count - 1, -1, -1)]
        return tuple(f"{name}{age}" for age in ages for name in names)
    return names if _num_inputs(space) == len(names) else _space_names(space)


def _num_inputs(space: spaces.Space[Any]) -> int:
    try:
        return int(spaces.flatdim(space))
    except (NotImplementedError, ValueError):  # Text, Graph and Sequence have none.
        return 0


def _space_names(space: spaces.Space[Any], path: str = "") -> Names | None:
    """Returns the names of a flattened space; None for a Box without a key, and for what cannot be flattened."""
    match space:
        case spaces.Dict() | spaces.Tuple():
            items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            found = [_space_names(part, f"{path} {key}".strip().replace("_", " ")) for key, part in items]
            known = [names for names in found if names is not None]
            return tuple(name for names in known for name in names) if len(known) == len(found) else None
        case spaces.Box() if path:
            return _numbered(path, space.shape)
        case spaces.MultiBinary():
            return _numbered(path or "bit", space.shape)
        case spaces.Discrete():
            return tuple(f"{path or 'state'} {int(space.start) + number}" for number in range(int(space.n)))
        case spaces.MultiDiscrete():
            label = path or "number"
            places = [f"{label} {place}" for place in range(space.nvec.size)]
            counts, starts = space.nvec.ravel().tolist(), np.ravel(space.start).tolist()
            rows = zip(places, counts, starts, strict=True)
            return tuple(f"{place} is {start + number}" for place, count, start in rows for number in range(count))
    return None


def _numbered(label: str, shape: tuple[int, ...]) -> Names:
    """Returns "label 0", "label 1" and so on, "label 0 1" of more axes, and "label" of a single number."""
    if math.prod(shape) == 1:
        return (label,)
    return tuple(" ".join((label, *map(str, place))) for place in np.ndindex(*shape))
