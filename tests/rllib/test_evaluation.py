import gymnasium as gym
import numpy as np
import pytest
import torch

from themis_ray.envs import EnvConfig, get_env_spec, make_env
from themis_ray.rllib import deterministic_policy, evaluate, random_policy
from themis_ray.rllib.modules import DQNModule, PPOModule, SACModule

MODEL_CONFIG = {
    "hidden_sizes": [16],
    "num_seed_steps": 1000,
    "initial_alpha": 1.0,
    "final_epsilon": 1.0,
    "epsilon_steps": 10,
}
PENDULUM = EnvConfig(id="Pendulum-v1", horizon=25)
CARTPOLE = EnvConfig(id="CartPole-v1", horizon=40)
MINIGRID = EnvConfig(id="MiniGrid-Empty-5x5-v0", horizon=10)


class CountingSteps(gym.Env):
    """Pays 1 a step and terminates after the seed's number of steps."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = seed
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {}


class MultiButtons(gym.Env):
    """Pays the sum of two buttons."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        assert self.action_space.contains(np.asarray(action))
        return self.np_random.random(2).astype(np.float32), float(np.sum(action)), False, self.t == 8, {}


def make_module(cls, config: EnvConfig, seed: int = 0):
    torch.manual_seed(seed)
    spec = get_env_spec(config)
    return cls(
        observation_space=spec.observation_space,
        action_space=spec.action_space,
        inference_only=True,
        model_config=MODEL_CONFIG,
    )


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (PPOModule, PENDULUM),
        (SACModule, PENDULUM),
        (PPOModule, CARTPOLE),
        (SACModule, CARTPOLE),
        (DQNModule, CARTPOLE),
        (PPOModule, EnvConfig(id=f"{__name__}:MultiButtons")),
    ],
)
def test_same_seeds_same_returns_and_fresh_seeds_others(cls, config: EnvConfig) -> None:
    policy = deterministic_policy(make_module(cls, config))
    returns = evaluate(policy, config, [1, 2, 3])
    torch.manual_seed(99)  # no draw of a global generator may matter
    np.testing.assert_array_equal(evaluate(policy, config, [1, 2, 3]), returns)
    assert returns.shape == (3,)
    if config.id != "CartPole-v1":  # where most returns are small whole numbers
        assert not np.array_equal(evaluate(policy, config, [4, 5, 6]), returns)


@pytest.mark.parametrize(("cls", "config"), [(PPOModule, PENDULUM), (SACModule, PENDULUM), (PPOModule, MINIGRID)])
def test_an_episode_is_that_of_a_plain_loop(cls, config: EnvConfig) -> None:
    policy, env = deterministic_policy(make_module(cls, config)), make_env(config)
    observation, _ = env.reset(seed=7)
    total, is_done = 0.0, False
    while not is_done:
        observation, reward, terminated, truncated, _ = env.step(policy(observation[None])[0])
        total, is_done = total + float(reward), terminated or truncated
    assert evaluate(policy, config, [3, 7, 11])[1] == pytest.approx(total)


@pytest.mark.parametrize("cls", [PPOModule, SACModule])
def test_box_actions_are_in_the_environments_own_units(cls) -> None:
    module = make_module(cls, PENDULUM)
    with torch.no_grad():
        module.pi.bias.fill_(50.0)  # as far to the right as it goes
    actions = deterministic_policy(module)(np.zeros((4, 3), np.float32))
    np.testing.assert_allclose(actions, np.full((4, 1), 2.0), rtol=1e-5)
    with torch.no_grad():
        module.pi.weight.zero_()
        module.pi.bias.fill_(0.0)
    np.testing.assert_allclose(deterministic_policy(module)(np.zeros((4, 3), np.float32)), 0.0, atol=1e-6)


class Endless(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ends_at = 7 if seed == 0 else None
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == self.ends_at, False, {}


def test_episodes_without_an_end_are_cut_and_a_warning_says_so(caplog) -> None:
    policy = lambda observations: np.zeros(len(observations), np.int64)  # noqa: E731
    config = EnvConfig(id=f"{__name__}:Endless", fixed_horizon=False)
    assert evaluate(policy, config, [0, 1, 2]).tolist() == [7, 27_000, 27_000]
    assert "2 of 3 episodes had not ended after 27000 env steps" in caplog.text
    assert "Set env.horizon" in caplog.text
    longer = EnvConfig(id=f"{__name__}:Endless", fixed_horizon=False, horizon=27_001)
    caplog.clear()
    assert evaluate(policy, longer, [0, 1]).tolist() == [7, 27_001]
    assert not caplog.text


def test_episodes_that_end_early_stop_counting() -> None:
    returns = evaluate(
        lambda observations: np.zeros(len(observations), int), EnvConfig(id=f"{__name__}:CountingSteps"), [3, 1, 5]
    )
    assert returns.tolist() == [3.0, 1.0, 5.0]


def test_random_policy_is_drawn_from_its_rng_and_covers_the_actions() -> None:
    space = gym.spaces.Discrete(3)
    actions = random_policy(space, np.random.default_rng(0))(np.zeros((3000, 1)))
    shares = np.bincount(actions, minlength=3) / 3000
    assert np.abs(shares - 1 / 3).max() < 0.04
    np.testing.assert_array_equal(random_policy(space, np.random.default_rng(0))(np.zeros((3000, 1))), actions)
    assert not np.array_equal(random_policy(space, np.random.default_rng(1))(np.zeros((3000, 1))), actions)


def test_random_policy_on_pendulum_spends_its_whole_range() -> None:
    space = get_env_spec(PENDULUM).action_space
    actions = random_policy(space, np.random.default_rng(0))(np.zeros((2000, 3)))
    assert actions.shape == (2000, 1)
    assert actions.min() < -0.95 * space.high[0]
    assert actions.max() > 0.95 * space.high[0]


def test_fixed_horizon_hides_the_end_of_an_episode() -> None:
    policy = random_policy(gym.spaces.Discrete(2), np.random.default_rng(0))
    fixed = evaluate(policy, CARTPOLE.model_copy(update={"fixed_horizon": True, "horizon": 60}), range(5))
    free = evaluate(policy, CARTPOLE.model_copy(update={"fixed_horizon": False, "horizon": 60}), range(5))
    assert (fixed <= 60).all()
    assert (free < 60).any()
