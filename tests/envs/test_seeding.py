"""Every episode can be had again from its seed and its actions."""

import numpy as np
import pytest

from themis_ray.envs import RESET_SEED, EnvConfig, SeedEpisodes, make_env


def episodes(env: SeedEpisodes, num_episodes: int, seed: int | None) -> list[tuple[int, np.ndarray]]:
    found = []
    for i in range(num_episodes):
        observation, info = env.reset(seed=seed if i == 0 else None)
        found.append((info[RESET_SEED], observation))
    return found


def test_episodes_differ_and_the_same_seed_gives_the_same_ones():
    env = SeedEpisodes(make_env(EnvConfig(id="CartPole-v1")))
    first, again, other = (episodes(env, 5, seed) for seed in (1, 1, 2))
    assert len({seed for seed, _ in first + other}) == 10
    for (seed, observation), (seed_again, observation_again) in zip(first, again, strict=True):
        assert seed == seed_again
        np.testing.assert_array_equal(observation, observation_again)


def test_no_two_environments_of_any_env_runners_have_the_same_episodes():
    """RLlib seeds runner w with seed + w, and gymnasium its environment i with i more."""

    def seeds(worker_index: int, index: int) -> list[int]:
        env = SeedEpisodes(make_env(EnvConfig(id="CartPole-v1")), worker_index)
        return [seed for seed, _ in episodes(env, 5, 1 + worker_index + index)]

    found = [seed for worker_index in range(4) for index in range(3) for seed in seeds(worker_index, index)]
    assert len(set(found)) == len(found) == 60
    rng = np.random.default_rng(1)
    assert found[:5] == [int(rng.integers(2**31 - 1)) for _ in range(5)], "the driver's own episodes are others now"
    assert seeds(2, 1) == seeds(2, 1)


def test_the_seed_that_is_told_brings_the_episode_back():
    env, plain = SeedEpisodes(make_env(EnvConfig(id="Pendulum-v1"))), make_env(EnvConfig(id="Pendulum-v1"))
    with pytest.raises(ValueError, match="first reset needs a seed"):
        env.reset()
    for seed, observation in episodes(env, 3, 5):
        np.testing.assert_array_equal(plain.reset(seed=seed)[0], observation)


@pytest.mark.parametrize("env_id", ["BipedalWalker-v3", "BipedalWalkerHardcore-v3", "LunarLander-v3"])
def test_box2d_forgets_the_episodes_before(env_id):
    """Without a new world for each episode BipedalWalker's third one differs from step 54 on."""

    def act(env, seed):
        rng = np.random.default_rng(seed)
        observations = [env.reset(seed=seed)[0]]
        for _ in range(150):
            action = rng.uniform(-1, 1, 4).astype(np.float32) if env.action_space.shape else rng.integers(4)
            observations.append(env.step(action)[0])
        return np.stack(observations)

    used, fresh = (make_env(EnvConfig(id=env_id)) for _ in range(2))
    for seed in range(3):
        last = act(used, seed)
    np.testing.assert_array_equal(act(fresh, 2), last)
