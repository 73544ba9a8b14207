"""Episodes with their frames, drawn while they happened, to compare with what is drawn later."""

import numpy as np
from gymnasium import spaces

from themis_ray.clips.replay import to_env_action
from themis_ray.data import EpisodeChunk, EpisodePool
from themis_ray.envs import RESET_SEED, EnvConfig, SeedEpisodes, make_env


def record(config: EnvConfig, num_env_steps: int) -> tuple[EpisodePool, dict[str, list[np.ndarray]]]:
    """Acts at random and keeps every frame, as RLlib would see them: actions as a policy gives them."""
    env = SeedEpisodes(make_env(config, render_mode="rgb_array"))
    pool, frames, rng = EpisodePool(config.id, num_env_steps), {}, np.random.default_rng(0)
    observation, info = env.reset(seed=1)
    steps, seed = [], info[RESET_SEED]
    for step in range(num_env_steps):
        frames.setdefault(str(seed), []).append(env.render())
        if isinstance(env.action_space, spaces.Box):
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        else:
            action = rng.integers(env.action_space.n)
        following, reward, terminated, truncated, info = env.step(to_env_action(action, env.action_space))
        steps.append((observation, action, reward))
        observation = following
        if terminated or truncated or step == num_env_steps - 1:
            observations, actions, rewards = (np.stack(column) for column in zip(*steps, strict=True))
            is_done = bool(terminated or truncated)
            pool.add(EpisodeChunk(str(seed), 0, observations, actions, rewards, is_done, 0, seed))
            observation, info = env.reset()
            steps, seed = [], info[RESET_SEED]
    env.close()
    return pool, frames
