"""What actions are called, for people who watch."""

import re
from typing import Any

from gymnasium import spaces

from themis_ray.envs.mujoco_names import actuator_names
from themis_ray.envs.wrappers import AnyEnv

__all__ = ["action_names"]

# By id without its version; from the documentation of gymnasium and highway-env.
ACTION_NAMES: dict[str, tuple[str, ...]] = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "none", "right"),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
}
HIGHWAY_ACTIONS = ("lane left", "idle", "lane right", "faster", "slower")


def action_names(env: AnyEnv, env_id: str, family: str) -> tuple[str, ...] | None:
    """Returns the names of the actions of a Discrete space, of the motors of a MuJoCo body, None where not known.

    Args:
        env: Made by `make_env`.
        env_id: Its id.
        family: Name of its family.
    """
    inner: Any = env.unwrapped
    if isinstance(env.action_space, spaces.Box) and family == "mujoco" and "model" in vars(inner):
        motors = actuator_names(inner.model)
        return motors if env.action_space.shape == (len(motors),) else None
    if not isinstance(env.action_space, spaces.Discrete):
        return None
    names: tuple[str, ...] | None = ACTION_NAMES.get(re.sub(r"-v\d+$", "", env_id.rpartition(":")[2]))
    if family == "atari":
        names = tuple(inner.get_action_meanings())
    if family in ("minigrid", "babyai"):
        names = tuple(action.name for action in inner.actions)
    if family == "highway" and env.action_space.n == len(HIGHWAY_ACTIONS):
        names = HIGHWAY_ACTIONS
    return names if names is not None and len(names) == env.action_space.n else None
