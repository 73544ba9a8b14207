"""Frames that are drawn later are those that were there to see, pixel by pixel."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from ray.rllib.utils.spaces.space_utils import unsquash_action

from themis_ray.clips import Replayer
from themis_ray.clips.replay import to_env_action
from themis_ray.data import EpisodeChunk, EpisodePool, Origin, Segment
from themis_ray.envs import RESET_SEED, EnvConfig, SeedEpisodes, make_env
from themis_ray.errors import DataError

# One of each family of the default install and how many steps are recorded; episodes that end early come first.
RECORDED = {
    "CartPole-v1": 700,
    "Pendulum-v1": 250,
    "Acrobot-v1": 100,
    "FrozenLake-v1": 150,
    "Taxi-v3": 250,
    "LunarLander-v3": 1100,
    "BipedalWalker-v3": 120,
    "CarRacing-v3": 60,
    "HalfCheetah-v5": 60,
    "Hopper-v4": 60,
    "ALE/Breakout-v5": 300,
    "Pong-v0": 100,
    "MiniGrid-DoorKey-5x5-v0": 300,
    "BabyAI-GoToObj-v0": 100,
}


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


@pytest.mark.parametrize("env_id", RECORDED)
def test_replayed_frames_equal_recorded_ones(env_id: str) -> None:
    config = EnvConfig(id=env_id)
    pool, frames = record(config, RECORDED[env_id])
    segments = pool.sample_segments(6, 20, np.random.default_rng(3))
    with Replayer(config) as replayer:
        replayed = list(replayer.replay(segments))
    assert {segment.id for segment, _ in replayed} == {segment.id for segment in segments}
    for segment, drawn in replayed:
        stop = segment.start_step + len(segment)
        np.testing.assert_array_equal(drawn, np.stack(frames[segment.episode_id][segment.start_step : stop]))
        assert drawn.std() > 0


def a_segment() -> Segment:
    pool, _ = record(EnvConfig(id="Pendulum-v1"), 60)
    return next(s for s in pool.sample_segments(50, 5, np.random.default_rng(0)) if s.start_step > 10)


def test_a_course_that_differs_is_refused() -> None:
    segment = a_segment()
    assert segment.origin is not None
    changed = segment.origin.earlier_actions.copy()
    changed[3] *= -1
    forged = Segment(
        *(getattr(segment, name) for name in ("id", "env_id", "episode_id", "start_step")),
        segment.observations, segment.actions, segment.true_rewards, Origin(segment.origin.reset_seed, changed),
    )  # fmt: skip
    with Replayer(EnvConfig(id="Pendulum-v1")) as replayer:
        assert replayer.frames(segment).shape == (5, 500, 500, 3)
        with pytest.raises(DataError, match=rf"cannot be replayed: step {segment.start_step} .* looks different"):
            replayer.frames(forged)
    with (
        Replayer(EnvConfig(id="Pendulum-v1", kwargs={"g": 5.0})) as other,
        pytest.raises(DataError, match="looks different"),
    ):
        other.frames(segment)


def test_a_segment_without_an_origin_is_refused() -> None:
    with (
        Replayer(EnvConfig(id="Pendulum-v1")) as replayer,
        pytest.raises(DataError, match="has no origin"),
    ):
        replayer.frames(pickle.loads(pickle.dumps(a_segment())))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-2.0, 2.0, (1,), np.float32),
        spaces.Box(np.array([-0.4, 0.1]), np.array([0.4, 3.3]), (2,), np.float64),
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Discrete(4),
    ],
)
def test_actions_are_those_that_rllib_hands_to_the_environment(space: spaces.Space) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = rng.integers(4) if isinstance(space, spaces.Discrete) else rng.normal(0, 1, space.shape)
        action = action if isinstance(space, spaces.Discrete) else action.astype(np.float32)
        ours, theirs = to_env_action(action, space), unsquash_action(action, space)
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
