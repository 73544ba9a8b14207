import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pydantic import ValidationError

from themis_ray.envs import (
    FAMILIES,
    EnvConfig,
    display,
    find_family,
    get_env_spec,
    installed_families,
    list_envs,
    make_env,
)
from themis_ray.errors import ConfigError, ThemisError, UnknownNameError

PENDULUM_CLASS = "gymnasium.envs.classic_control:PendulumEnv"
RAM = {"obs_type": "ram"}

# id, kwargs, family, observation shape (a mark of absorbing states included) and dtype, observation kind, action space
# type, horizon, fixed horizon
PROMISES: list[tuple[str, dict[str, Any], str, tuple[int, ...], Any, str, Any, int | None, bool]] = [
    ("CartPole-v1", {}, "classic", (5,), np.float32, "vector", spaces.Discrete, 500, True),
    ("Pendulum-v1", {}, "classic", (3,), np.float32, "vector", spaces.Box, 200, True),
    ("FrozenLake-v1", {}, "toy_text", (17,), np.float32, "vector", spaces.Discrete, 100, True),
    ("Blackjack-v1", {}, "toy_text", (46,), np.float32, "vector", spaces.Discrete, 20, True),
    ("CliffWalking-v1", {}, "toy_text", (49,), np.float32, "vector", spaces.Discrete, 200, True),
    ("LunarLander-v3", {}, "box2d", (9,), np.float32, "vector", spaces.Discrete, 1000, True),
    ("HalfCheetah-v5", {}, "mujoco", (17,), np.float32, "vector", spaces.Box, 1000, True),
    ("Reacher-v5", {}, "mujoco", (10,), np.float32, "vector", spaces.Box, 50, True),
    ("ALE/Pong-v5", {}, "atari", (84, 84, 4), np.uint8, "image", spaces.Discrete, 27000, False),
    ("ALE/Pong-v5", RAM, "atari", (128,), np.float32, "vector", spaces.Discrete, 27000, False),
    ("Pong-v4", {}, "atari", (84, 84, 4), np.uint8, "image", spaces.Discrete, 27000, False),
    ("MiniGrid-Empty-5x5-v0", {}, "minigrid", (7, 7, 3), np.uint8, "grid", spaces.Discrete, 100, True),
    ("BabyAI-GoToObj-v0", {}, "babyai", (7, 7, 3), np.uint8, "grid", spaces.Discrete, 64, True),
    ("minigrid:MiniGrid-Empty-5x5-v0", {}, "minigrid", (7, 7, 3), np.uint8, "grid", spaces.Discrete, 100, True),
    (PENDULUM_CLASS, {"g": 9.81}, "other", (3,), np.float32, "vector", spaces.Box, None, False),
]


@pytest.mark.parametrize(
    ("env_id", "kwargs", "family", "shape", "dtype", "kind", "action_type", "horizon", "is_fixed"),
    PROMISES,
    ids=[f"{row[0]}{'-ram' if row[1] == RAM else ''}" for row in PROMISES],
)
def test_env_makes_resets_and_steps_in_the_promised_spaces(
    env_id, kwargs, family, shape, dtype, kind, action_type, horizon, is_fixed
):
    config = EnvConfig(id=env_id, kwargs=kwargs)
    spec = get_env_spec(config)
    assert (spec.id, spec.family, spec.observation_kind) == (env_id, family, kind)
    assert (spec.observation_space.shape, spec.observation_space.dtype) == (shape, dtype)
    assert isinstance(spec.action_space, action_type)
    assert (spec.horizon, spec.is_fixed_horizon) == (horizon, is_fixed)
    env = make_env(config)
    assert env.observation_space == spec.observation_space
    assert env.action_space == spec.action_space
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(50):
        assert env.observation_space.contains(observation)
        observation, reward, is_terminated, is_truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(float(reward))
        assert not (is_fixed and is_terminated)
        if is_terminated or is_truncated:
            observation, _ = env.reset()
    env.close()


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Blackjack-v1", "HalfCheetah-v5", "BabyAI-GoToObj-v0", "ALE/Pong-v5"]
)
def test_same_seed_same_episode(env_id):
    episodes = []
    for _ in range(2):
        env = make_env(EnvConfig(id=env_id))
        env.action_space.seed(5)
        observations = [env.reset(seed=5)[0]]
        for _ in range(20):
            observation, *_, is_truncated, _ = env.step(env.action_space.sample())
            observations.append(observation)
            if is_truncated:
                break
        episodes.append(np.stack(observations))
    np.testing.assert_array_equal(*episodes)


def test_one_hot_observation_is_the_state():
    env = make_env(EnvConfig(id="FrozenLake-v1", kwargs={"is_slippery": False}))
    assert np.flatnonzero(env.reset(seed=0)[0]).tolist() == [0]
    assert np.flatnonzero(env.step(2)[0]).tolist() == [1]


def test_atari_stack_holds_the_newest_frame_last():
    env = make_env(EnvConfig(id="ALE/Pong-v5"))
    before, _ = env.reset(seed=0)
    for _ in range(10):
        after, *_ = env.step(env.action_space.sample())
        np.testing.assert_array_equal(after[..., :-1], before[..., 1:])
        before = after


def test_longest_mission_sets_the_horizon_of_babyai():
    assert get_env_spec(EnvConfig(id="BabyAI-GoToSeqS5R2-v0")).horizon == 400


def test_horizon_replaces_the_env_s_own():
    spec = get_env_spec(EnvConfig(id="CartPole-v1", horizon=30, fixed_horizon=False))
    assert (spec.horizon, spec.is_fixed_horizon) == (30, False)
    env = make_env(EnvConfig(id="Pendulum-v1", horizon=300, fixed_horizon=False))
    env.reset(seed=0)
    truncations = [env.step(env.action_space.sample())[3] for _ in range(300)]
    assert truncations == [False] * 299 + [True]


@pytest.mark.parametrize(
    ("env_id", "options", "horizon"),
    [
        ("PongNoFrameskip-v4", {}, 27_000),
        ("PongNoFrameskip-v4", {"kwargs": RAM}, 108_000),
        ("PongNoFrameskip-v4", {"family_wrappers": False}, 108_000),
        ("ALE/Pong-v5", {"family_wrappers": False}, 27_000),
        ("ALE/Pong-v5", {"family_wrappers": False, "kwargs": {"frameskip": 3}}, 36_000),
        ("Pong-v4", {"kwargs": RAM}, 54_000),  # 2 to 4 screens a step
    ],
)
def test_horizon_of_atari_is_in_env_steps_however_many_screens_they_have(env_id, options, horizon):
    assert get_env_spec(EnvConfig(id=env_id, **options)).horizon == horizon


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("ALE/Pongg-v5", "ALE/Pong-v5"),
        ("MiniGrid-Empty-5x5-v9", "MiniGrid-Empty-5x5-v0"),
    ],
)
def test_unknown_id_suggests(env_id, suggestion):
    with pytest.raises(UnknownNameError) as caught:
        make_env(EnvConfig(id=env_id))
    message = str(caught.value)
    assert f"no environment {env_id!r}. Did you mean " in message
    assert repr(suggestion) in message
    assert "see gymnasium.registry" in message
    assert message.count("' or '") <= 4


def test_unknown_class_suggests():
    with pytest.raises(UnknownNameError, match="Did you mean 'PendulumEnv'"):
        make_env(EnvConfig(id="gymnasium.envs.classic_control:PendulumEnw"))
    with pytest.raises(UnknownNameError, match="no environment 'gymnasium:'"):
        make_env(EnvConfig(id="gymnasium:"))


class NoSpaces(gym.Env):
    pass


@pytest.mark.parametrize("text", ["def broken(:\n", "raise RuntimeError('broken')\n"])
def test_a_module_that_is_broken_is_told_in_one_line(text, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="module 'broken_module' cannot be imported"):
        make_env(EnvConfig(id="broken_module:Thing"))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (EnvConfig(id="CartPole-v1", kwargs={"mass": 3}), "kwargs {'mass': 3}"),
        (EnvConfig(id="ALE/Pong-v5", kwargs={"frameskip": 4}), "kwargs {'frameskip': 4}"),
        (EnvConfig(id="Pendulum-v1", kwargs={"max_episode_steps": 3}), "Set env.horizon instead"),
        (EnvConfig(id=":Pendulum-v1"), "module '' cannot be imported (ValueError"),
        (EnvConfig(id=".envs:Pendulum"), "module '.envs' cannot be imported (TypeError"),
        (EnvConfig(id=f"{__name__}:NoSpaces"), "has no observation_space"),
        (EnvConfig(id="no_such_module:Thing"), "Install its package"),
        (EnvConfig(id="HalfCheetah-v3"), "needs a package that is not here"),
        (EnvConfig(id="gymnasium:registry"), "is a dict"),
    ],
)
def test_wrong_config_is_one_line(config, told):
    with pytest.raises(ConfigError) as caught:
        make_env(config)
    assert isinstance(caught.value, ThemisError)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_family_module_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match="Install with: pip install 'themis-ray'"):
        make_env(EnvConfig(id="ALE/Pong-v5"))


@pytest.mark.parametrize(
    "wrong",
    [{"id": ""}, {"id": "CartPole-v1", "horizon": 0}, {"name": "CartPole-v1"}],
)
def test_config_refuses_wrong_values(wrong):
    with pytest.raises(ValidationError):
        EnvConfig(**wrong)


def test_every_listed_id_is_registered_and_in_one_family(monkeypatch):
    names_of_rllib = {f"rllib-{kind}-agent-env-v0": gym.spec("CartPole-v1") for kind in ("single", "multi")}
    for name, spec in names_of_rllib.items():  # as after a run in the same process
        monkeypatch.setitem(gym.registry, name, spec)
    every = list_envs()
    assert not set(names_of_rllib) & set(every)
    assert every == sorted(set(every))
    assert set(every) <= set(gym.registry)
    by_family = {family.name: list_envs(family.name) for family in installed_families()}
    assert sorted(env_id for ids in by_family.values() for env_id in ids) == every
    counts = {name: len(ids) for name, ids in by_family.items()}
    assert counts["atari"] == 352
    assert counts["babyai"] == 96
    assert min(count for name, count in counts.items() if FAMILIES[name].extra is None and name != "other") >= 5
    assert "CarRacing-v3" in by_family["box2d"]
    assert not {"HalfCheetah-v3", "Pusher-v4", "phys2d/CartPole-v1"} & set(every)


def test_unknown_family_suggests():
    with pytest.raises(UnknownNameError, match="Did you mean 'minigrid'"):
        list_envs("minigird")


def test_every_listed_small_env_resets():
    for family in ("classic", "toy_text", "minigrid"):
        for env_id in list_envs(family):
            env = make_env(EnvConfig(id=env_id, horizon=10))
            observation, _ = env.reset(seed=0)
            assert env.observation_space.contains(observation), env_id
            env.close()


def test_reference_return_comes_with_a_source():
    spec = get_env_spec(EnvConfig(id="Pendulum-v1"))
    assert spec.reference_return == -156.995
    assert "rl-baselines3-zoo" in spec.reference_source
    unknown = get_env_spec(EnvConfig(id="Taxi-v3"))
    assert (unknown.reference_return, unknown.reference_source) == (None, "")


def test_find_family_prefers_the_specific_one():
    assert find_family("Walker2d-v5").name == "mujoco"
    assert find_family("Walkers-v5").name == "other"


def test_frames_are_drawn_without_display_or_noise():
    code = (
        "from themis_ray.envs import EnvConfig, make_env\n"
        "for env_id in ('LunarLander-v3', 'CarRacing-v3', 'FrozenLake-v1', 'CartPole-v1'):\n"
        "    env = make_env(EnvConfig(id=env_id), render_mode='rgb_array')\n"
        "    env.reset(seed=0)\n"
        "    assert env.render().ndim == 3\n"
        "    env.close()\n"
    )
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "XDG_RUNTIME_DIR")
    headless = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([sys.executable, "-c", code], env=headless, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ALSA" not in done.stderr
    assert "XDG_RUNTIME_DIR" not in done.stderr


def test_sdl_settings_are_made_only_for_drawing_and_never_replaced(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_AUDIODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "offscreen")
    make_env(EnvConfig(id="CartPole-v1")).close()
    assert "SDL_AUDIODRIVER" not in os.environ
    make_env(EnvConfig(id="CartPole-v1"), render_mode="rgb_array").close()
    assert os.environ["SDL_VIDEODRIVER"] == "offscreen"
    assert os.environ.get("SDL_AUDIODRIVER") == ("dummy" if sys.platform == "linux" else None)
    os.environ.pop("SDL_AUDIODRIVER", None)


def test_ids_of_every_package_belong_to_its_family():
    by_family = {family.name: list_envs(family.name) for family in installed_families()}
    modules = {"atari": "ale_py", "minigrid": "minigrid", "robotics": "gymnasium_robotics", "highway": "highway_env"}
    for family, module in modules.items():
        found = [env_id for env_id in by_family.get(family, []) if module not in str(gym.spec(env_id).entry_point)]
        assert found == []


@pytest.mark.parametrize(
    ("env_id", "family", "extra"),
    [
        ("FetchReach-v4", "robotics", "robotics"),
        ("dm_control/walker-walk-v0", "dm_control", "dm-control"),
        ("Meta-World/button-press-topdown-v3", "metaworld", "metaworld"),
        ("highway-v0", "highway", "highway"),
    ],
)
def test_a_family_that_is_not_installed_says_how_to_install_it(env_id, family, extra, monkeypatch):
    assert find_family(env_id).name == family
    monkeypatch.setitem(sys.modules, FAMILIES[family].module, None)  # as if it was not there
    with pytest.raises(ConfigError, match=rf"Install with: pip install 'themis-ray\[{extra}\]'"):
        make_env(EnvConfig(id=env_id))
    assert family not in {row.name for row in installed_families()}


def test_mujoco_draws_with_what_is_there(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(display, "_can_load", lambda library: "OSMesa" in library)
    display.prepare_drawing("mujoco")
    assert os.environ.pop("MUJOCO_GL") == "osmesa"
    monkeypatch.setattr(display, "_can_load", lambda library: False)
    with pytest.raises(ConfigError, match="apt-get install libegl1"):
        display.prepare_drawing("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    display.prepare_drawing("mujoco")
    assert os.environ["MUJOCO_GL"] == "glfw"
