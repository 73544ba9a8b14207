"""A clip of a trained policy, from the environment that it acts in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import draw_actions, upscale, write_clip
from themis_ray.envs import EnvConfig, action_names, find_family, make_env
from themis_ray.tracking.artifacts import POLICY_CLIP

__all__ = ["record_policy"]

# Thirteen seconds of the clip. Drawing them takes a second; of MuJoCo, where a CPU draws, a dozen.
MAX_NUM_STEPS = 200


def record_policy(
    policy: Callable[[NDArray[Any]], NDArray[Any]], env_config: EnvConfig, seed: int, folder: Path
) -> Path:
    """Write a clip of the first steps of one episode, each with its action, and return its path.

    Args:
        policy: Observations (N, ...) to actions in the environment's own units, (N, ...).
        env_config: Where it acts.
        seed: Of the episode.
        folder: It is made if it is missing; a clip that it held is replaced.

    Raises:
        ConfigError: The environment cannot be made to draw.
        DataError: What it draws is no frame.
    """
    env = make_env(env_config, render_mode="rgb_array")
    try:
        observation, _ = env.reset(seed=seed)
        frames: list[NDArray[np.uint8]] = []
        actions: list[NDArray[Any]] = []
        is_over = False
        while not is_over and len(frames) < MAX_NUM_STEPS:
            frames.append(np.asarray(env.render()))
            actions.append(policy(observation[None])[0])
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            is_over = bool(terminated or truncated)
        names = action_names(env, env_config.id, find_family(env_config.id.rpartition(":")[2]).name)
        drawn = draw_actions(upscale(np.stack(frames)), np.stack(actions), env.action_space, names)
    finally:
        env.close()  # type: ignore[no-untyped-call]
    clip = write_clip(drawn, folder)
    return clip.replace(folder / f"{POLICY_CLIP}{clip.suffix}")
