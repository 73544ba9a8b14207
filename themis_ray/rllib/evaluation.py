"""True returns of a policy, outside of training: whole episodes, given seeds, no exploration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import unsquash_action

from themis_ray.envs import EnvConfig, make_env

__all__ = ["deterministic_policy", "evaluate", "random_policy"]

logger = logging.getLogger("themis_ray")

# The longest episodes of gymnasium's own environments are those of Atari games, 108 000 frames.
MOST_STEPS_WITHOUT_HORIZON = 27_000

Policy = Callable[[NDArray[Any]], NDArray[Any]]


def deterministic_policy(module: Any) -> Policy:
    """Return the policy that takes the most likely action of an RLModule, in the environment's own units."""
    space = module.action_space

    def act(observations: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            outputs = module.forward_inference({Columns.OBS: torch.from_numpy(observations)})
            if Columns.ACTIONS in outputs:
                actions = outputs[Columns.ACTIONS]
            else:
                distribution = module.get_inference_action_dist_cls().from_logits(outputs[Columns.ACTION_DIST_INPUTS])
                actions = distribution.to_deterministic().sample()
        chosen: NDArray[Any] = actions.numpy()
        if isinstance(space, gym.spaces.Box):
            return np.stack([unsquash_action(action, space) for action in chosen])
        return chosen

    return act


def random_policy(space: gym.Space[Any], rng: np.random.Generator) -> Policy:
    """Return the policy that draws every action uniformly from `space`."""
    space.seed(int(rng.integers(2**31)))
    return lambda observations: np.stack([space.sample() for _ in observations])


def evaluate(policy: Policy, config: EnvConfig, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Run one episode per seed, all in step, and return their true undiscounted returns, shape (len(seeds),).

    Where neither the environment nor `config.horizon` ends an episode, it is cut after `MOST_STEPS_WITHOUT_HORIZON`
    env steps, and a warning says so.
    """
    most_steps = max(MOST_STEPS_WITHOUT_HORIZON, config.horizon or 0)
    envs = [make_env(config) for _ in seeds]
    try:
        observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
        returns = np.zeros(len(envs))
        running, num_steps = list(range(len(envs))), 0
        while running:
            actions = policy(np.stack([observations[i] for i in running]))
            still_running = []
            for i, action in zip(running, actions, strict=True):
                observations[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += float(reward)
                if not (terminated or truncated):
                    still_running.append(i)
            running, num_steps = still_running, num_steps + 1
            if running and num_steps == most_steps:
                logger.warning(
                    "%s: %d of %d episodes had not ended after %d env steps, where the evaluation cuts them. Set "
                    "env.horizon.",
                    *(config.id, len(running), len(envs), num_steps),
                )
                break
        return returns
    finally:
        for env in envs:
            env.close()  # type: ignore[no-untyped-call]
