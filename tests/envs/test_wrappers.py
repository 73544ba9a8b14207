from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.envs import EnvConfig, FixedHorizon, get_env_spec, infer_observation_kind, make_env
from themis_ray.envs.wrappers import standardise_actions, standardise_observations
from themis_ray.errors import ConfigError


class CountingEnv(gym.Env[Any, Any]):
    """Observes spaces it is told to; pays 1 a step and terminates, or truncates, after `num_steps`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        num_steps: int = 3,
        is_truncating: bool = False,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.num_steps = num_steps
        self.is_truncating = is_truncating
        self.actions: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.actions = []
        return self.observation_space.sample(), {"started": True}

    def step(self, action):
        self.actions.append(action)
        is_over = len(self.actions) >= self.num_steps
        return (
            self.observation_space.sample(),
            1,
            is_over and not self.is_truncating,
            is_over and self.is_truncating,
            {},
        )


def play(env: gym.Env, seed: int, num_steps: int) -> list[tuple[Any, float, bool, bool, dict[str, Any]]]:
    env.reset(seed=seed)
    env.action_space.seed(seed)
    steps = []
    for _ in range(num_steps):
        steps.append(env.step(env.action_space.sample()))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


@given(num_steps=st.integers(1, 12), horizon=st.integers(1, 12), is_truncating=st.booleans())
@settings(max_examples=60, deadline=None)
def test_episode_lasts_exactly_the_horizon_and_never_terminates(num_steps, horizon, is_truncating):
    inner = CountingEnv(num_steps=num_steps, is_truncating=is_truncating)
    env = FixedHorizon(inner, horizon)
    for seed in range(2):
        steps = play(env, seed, 100)
        assert len(steps) == horizon
        assert [step[3] for step in steps] == [False] * (horizon - 1) + [True]
        assert not any(step[2] for step in steps)
        assert sum(step[1] for step in steps) == min(num_steps, horizon)
        assert len(inner.actions) == min(num_steps, horizon), "the simulator was stepped while absorbing"
        assert [step[4]["is_absorbing"] for step in steps] == [i >= num_steps for i in range(horizon)]
        for i, step in enumerate(steps):
            assert env.observation_space.contains(step[0])
            if i < num_steps - 1:
                assert step[0][-1] == 0
            else:  # The step that ends the inner episode leads into the absorbing state.
                np.testing.assert_array_equal(step[0], [0, 0, 1])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MiniGrid-Empty-5x5-v0", "FrozenLake-v1", "LunarLander-v3"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_true_return_equals_that_of_the_inner_env(env_id, seed):
    fixed = make_env(EnvConfig(id=env_id, horizon=200))
    free = make_env(EnvConfig(id=env_id, horizon=200, fixed_horizon=False))
    fixed_steps, free_steps = play(fixed, seed, 500), play(free, seed, 500)
    assert len(fixed_steps) == 200
    assert sum(step[1] for step in fixed_steps) == sum(step[1] for step in free_steps)
    for ours, theirs in zip(fixed_steps, free_steps, strict=False):
        assert ours[1] == theirs[1]
        if not (theirs[2] or theirs[3]):
            np.testing.assert_array_equal(np.ravel(ours[0])[: theirs[0].size], np.ravel(theirs[0]))


def test_default_horizon_is_the_env_s_own_limit():
    env = make_env(EnvConfig(id="CartPole-v1"))
    assert len(play(env, 0, 1000)) == 500
    assert len(play(make_env(EnvConfig(id="CartPole-v1", fixed_horizon=False)), 0, 1000)) < 100


def test_reset_passes_seed_options_and_info_on():
    env = FixedHorizon(CountingEnv(), 5)
    first, info = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert first[-1] == 0
    assert info == {"started": True, "is_absorbing": False}


def test_rewards_are_floats():
    assert all(type(step[1]) is float for step in play(FixedHorizon(CountingEnv(), 6), 0, 10))


def test_horizon_must_be_positive_and_known():
    with pytest.raises(ConfigError, match="horizon 0"):
        FixedHorizon(CountingEnv(), 0)
    with pytest.raises(ConfigError, match="Set horizon"):
        make_env(EnvConfig(id="gymnasium.envs.classic_control:PendulumEnv", fixed_horizon=True))


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1.0, 1.0, (), np.float64), (1,), np.float32),
        (spaces.Box(-np.inf, np.inf, (4,), np.float64), (4,), np.float32),
        (spaces.Box(0, 255, (128,), np.uint8), (128,), np.float32),
        (spaces.Box(-1.0, 1.0, (5, 5), np.float32), (25,), np.float32),
        (spaces.Box(-1.0, 1.0, (2, 3, 4, 5), np.float32), (120,), np.float32),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), (7, 7, 3), np.uint8),
        (spaces.Box(0, 255, (64, 48, 3), np.uint8), (64, 48, 3), np.uint8),
        (spaces.Box(0.0, 1.0, (64, 48, 3), np.float64), (64, 48, 3), np.float32),
        (spaces.Discrete(5, start=2), (5,), np.float32),
        (spaces.MultiDiscrete([2, 3]), (5,), np.float32),
        (spaces.MultiBinary(6), (6,), np.float32),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2, 2)))), (7,), np.float32),
        (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(3)), c=spaces.MultiBinary(2)), (5,), np.float32),
    ],
)
def test_observations_become_a_plain_box(space, shape, dtype):
    env = standardise_observations(CountingEnv(observation_space=space))
    assert isinstance(env.observation_space, spaces.Box)
    assert (env.observation_space.shape, env.observation_space.dtype) == (shape, dtype)
    inner_observation = CountingEnv(observation_space=space).reset(seed=1)[0]
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    expected = inner_observation if isinstance(space, spaces.Box) else spaces.flatten(space, inner_observation)
    np.testing.assert_allclose(np.ravel(observation), np.ravel(expected).astype(np.float32), rtol=1e-6)
    assert env.observation_space.contains(env.step(0)[0])


def test_bounds_beyond_float32_become_unbounded():
    env = standardise_observations(CountingEnv(observation_space=spaces.Box(-1e300, 1e300, (2,), np.float64)))
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Text(5)]))])
def test_unsupported_observation_space_is_named(space):
    with pytest.raises(ConfigError, match=r"Text has no fixed-size vector.*Supported: Box"):
        standardise_observations(CountingEnv(observation_space=space))


def test_discrete_actions_start_at_zero():
    inner = CountingEnv(action_space=spaces.Discrete(3, start=5))
    env = standardise_actions(inner)
    assert env.action_space == spaces.Discrete(3)
    env.reset()
    env.step(2)
    assert inner.actions == [7]


@pytest.mark.parametrize(
    ("space", "num_choices", "action", "own"),
    [
        (spaces.MultiBinary(3), [2, 2, 2], [1, 0, 1], [1, 0, 1]),
        (spaces.MultiBinary((2, 2)), [2, 2, 2, 2], [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), [2, 3, 4, 5], [1, 2, 3, 4], [[1, 2], [3, 4]]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [2, 3], [1, 0], [6, -1]),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3, start=1))), [2, 3], [1, 2], (1, 3)),
        (
            spaces.Dict(move=spaces.Discrete(4), hands=spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(3)))),
            [4, 2, 2, 3],
            [3, 0, 1, 2],
            {"hands": ([0, 1], 2), "move": 3},
        ),
    ],
)
def test_actions_made_of_whole_numbers_become_one_multi_discrete(space, num_choices, action, own):
    inner = CountingEnv(action_space=space)
    env = standardise_actions(inner)
    assert env.action_space == spaces.MultiDiscrete(num_choices)
    env.reset()
    env.step(np.array(action, np.int32))
    np.testing.assert_equal(inner.actions[0], own)
    for _ in range(20):
        env.step(env.action_space.sample())
    assert all(space.contains(taken) for taken in inner.actions)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Text(4),
        spaces.Dict(buttons=spaces.Discrete(2), wheel=spaces.Box(-1.0, 1.0, (1,))),
    ],
)
def test_unsupported_action_space_is_named(space):
    with pytest.raises(ConfigError) as caught:
        standardise_actions(CountingEnv(action_space=space))
    assert f"action space {space} is not supported" in str(caught.value)
    assert "Supported: Box of floats, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple" in str(caught.value)


@pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, (3,)), spaces.MultiDiscrete([2, 3]), spaces.Discrete(4)])
def test_supported_action_spaces_stay_as_they_are(space):
    env = CountingEnv(action_space=space)
    assert standardise_actions(env) is env


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((84, 84, 4), "image"), ((36, 36, 1), "image"), ((35, 100, 3), "grid"), ((7, 7, 3), "grid"), ((9,), "vector")],
)
def test_observation_kind_follows_the_shape(shape, kind):
    assert infer_observation_kind(spaces.Box(0, 255, shape, np.uint8)) == kind


def test_module_class_id_is_wrapped_the_same_way(monkeypatch, tmp_path):
    (tmp_path / "walled_garden.py").write_text(
        "import gymnasium as gym\n"
        "class Garden(gym.Env):\n"
        "    observation_space = gym.spaces.Discrete(3)\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self, size=1, render_mode=None): self.size = size\n"
        "    def reset(self, *, seed=None, options=None): return 0, {}\n"
        "    def step(self, action): return self.size % 3, 1.0, False, False, {}\n"
        "def broken(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = EnvConfig(id="walled_garden:Garden", kwargs={"size": 2}, horizon=4, fixed_horizon=True)
    steps = play(make_env(config, render_mode="rgb_array"), 0, 10)
    assert len(steps) == 4
    np.testing.assert_array_equal(steps[0][0], np.float32([0, 0, 1, 0]))  # one-hot, then the mark
    assert get_env_spec(config).family == "other"
    with pytest.raises(ConfigError, match="makes a int"):
        make_env(EnvConfig(id="walled_garden:broken"))
