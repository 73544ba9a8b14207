"""Wrappers of the user, stacked frames and normalised observations."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from themis_ray.envs import EnvConfig, get_env_spec, make_env
from themis_ray.envs.options import _STATISTICS
from themis_ray.errors import ConfigError

HERE = __name__


class NegateReward(gym.RewardWrapper):
    def reward(self, reward):
        return -float(reward)


def to_observation_of_two(env):
    return gym.wrappers.TransformObservation(env, lambda x: x[:2], spaces.Box(-np.inf, np.inf, (2,), np.float32))


class EndsAtFive(gym.Wrapper):
    def reset(self, **options):
        self.num_env_steps = 0
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, _, is_truncated, info = self.env.step(action)
        self.num_env_steps += 1
        return observation, reward, self.num_env_steps >= 5, is_truncated, info


def not_an_env(env):
    return 3


def rollout(config, num_steps=60):
    env = make_env(config)
    env.action_space.seed(0)
    observations, rewards = [env.reset(seed=3)[0]], []
    for _ in range(num_steps):
        observation, reward, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        observations.append(observation)
        rewards.append(reward)
    env.close()
    return np.stack(observations), np.array(rewards)


def test_wrappers_of_the_user_are_applied_in_order():
    plain = rollout(EnvConfig(id="Pendulum-v1"))
    wrappers = (f"{HERE}:NegateReward", f"{HERE}:to_observation_of_two")
    wrapped = rollout(EnvConfig(id="Pendulum-v1", wrappers=wrappers, fixed_horizon=False))
    np.testing.assert_array_equal(wrapped[0], plain[0][:, :2])
    np.testing.assert_array_equal(wrapped[1], -plain[1])


def test_an_episode_that_a_wrapper_ends_has_the_fixed_horizon_too():
    config = EnvConfig(id="Pendulum-v1", wrappers=(f"{HERE}:EndsAtFive",))
    spec, env = get_env_spec(config), make_env(config)
    assert (spec.horizon, spec.is_fixed_horizon) == (200, True)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HERE}:nothing", "cannot be applied .*AttributeError"),
        ("no_such_module:Wrapper", "cannot be applied .*ModuleNotFoundError"),
        ("Wrapper", "cannot be applied .*ValueError"),
        (f"{HERE}:not_an_env", "returns a int"),
    ],
)
def test_a_wrapper_that_is_none_is_refused_in_one_line(path, message):
    with pytest.raises(ConfigError, match=message):
        make_env(EnvConfig(id="Pendulum-v1", wrappers=(path,)))


def test_vectors_are_joined_with_the_newest_last():
    plain, _ = rollout(EnvConfig(id="Pendulum-v1"))
    stacked, _ = rollout(EnvConfig(id="Pendulum-v1", frame_stack=3))
    np.testing.assert_array_equal(stacked[0], np.tile(plain[0], 3))
    np.testing.assert_array_equal(stacked[2:], np.concatenate([plain[:-2], plain[1:-1], plain[2:]], axis=1))


def test_images_and_grids_get_more_channels():
    grid = EnvConfig(id="MiniGrid-Empty-5x5-v0")
    plain, _ = rollout(grid, 20)
    stacked, _ = rollout(grid.model_copy(update={"frame_stack": 2}), 20)
    assert stacked.shape[1:] == (7, 7, 6)
    np.testing.assert_array_equal(stacked[1:], np.concatenate([plain[:-1], plain[1:]], axis=-1))
    single = get_env_spec(EnvConfig(id="ALE/Pong-v5", frame_stack=1)).observation_space
    assert (single.shape, single.dtype) == ((84, 84, 1), np.uint8)
    assert get_env_spec(EnvConfig(id="ALE/Pong-v5")).observation_space.shape == (84, 84, 4)


def test_frames_do_not_stack_beside_other_parts():
    with pytest.raises(ConfigError, match="frame_stack=2 does not go with"):
        make_env(EnvConfig(id="rllib.camera:Camera", frame_stack=2))


def test_a_family_can_be_left_as_it_is():
    spec = get_env_spec(EnvConfig(id="ALE/Pong-v5", family_wrappers=False, frame_stack=1))
    assert spec.observation_space.shape == (210, 160, 3)


def test_observations_are_normalised_by_what_random_steps_show_and_stay_so():
    config = EnvConfig(id="HalfCheetah-v5", normalize_observations=True)
    first, again = (rollout(config, 500)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.mean(axis=0)).max() < 1.0
    assert 0.3 < np.median(first.std(axis=0)) < 2.0
    marked = get_env_spec(EnvConfig(id="CartPole-v1", normalize_observations=True)).observation_space
    assert marked.shape == (5,)
    assert (marked.low[-1], marked.high[-1]) == (0, 1)
    with pytest.raises(ConfigError, match="is for vectors"):
        make_env(EnvConfig(id="MiniGrid-Empty-5x5-v0", normalize_observations=True))


class Restless(gym.Env):
    """Makes new spaces at every reset, observes the last action, and draws without being told so when it is made."""

    render_mode = None

    def __init__(self):
        self.observation_space = spaces.Box(-1, 4, (1,), np.float32)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.action_space = spaces.Discrete(4)
        return np.float32([-1]), {}

    def step(self, action):
        return np.float32([action]), 0.0, False, False, {}

    def render(self):
        return None if self.render_mode is None else np.full((8, 8, 3), 7, np.uint8)


def test_an_environment_whose_constructor_takes_no_render_mode_draws():
    env = make_env(EnvConfig(id=f"{HERE}:Restless"), render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (8, 8, 3)
    silent = make_env(EnvConfig(id=f"{HERE}:Restless"))
    silent.reset(seed=0)
    assert silent.render() is None


def test_statistics_are_the_same_where_a_reset_makes_a_new_action_space():
    _STATISTICS.clear()
    config = EnvConfig(id=f"{HERE}:Restless", normalize_observations=True)
    first = make_env(config).reset(seed=0)[0]
    _STATISTICS.clear()
    np.testing.assert_array_equal(make_env(config).reset(seed=0)[0], first)
