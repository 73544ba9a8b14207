"""Frames that are drawn later are those that were there to see, pixel by pixel."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from lantern import LANTERN, lantern_segment
from ray.rllib.utils.spaces.space_utils import unsquash_action
from recording import record

from themis_ray.clips import Replayer, check_drawing
from themis_ray.clips.replay import to_env_action
from themis_ray.data import Origin, Segment
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError

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


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "LunarLander-v3"])
def test_chosen_steps_are_those_of_the_whole(env_id: str) -> None:
    """Also where sparks move on with every frame, and where the next segment goes on from the last chosen step."""
    config = EnvConfig(id=env_id)
    pool, frames = record(config, 200)
    segments = sorted(pool.sample_segments(6, 12, np.random.default_rng(3)), key=lambda segment: segment.start_step)
    with Replayer(config) as replayer:
        for segment in segments:
            recorded = frames[segment.episode_id]
            expected = [recorded[segment.start_step + step] for step in (7, 0, 3, 3)]
            np.testing.assert_array_equal(replayer.frames(segment, [7, 0, 3, 3]), np.stack(expected))


@pytest.mark.parametrize("steps", [[], [-1], [0, 5]])
def test_steps_that_are_not_there_are_refused(steps: list[int]) -> None:
    with Replayer(LANTERN) as replayer, pytest.raises(ValueError, match="steps must be from 0 to 4"):
        replayer.frames(lantern_segment(1, np.zeros(5)), steps)


def test_every_step_up_to_the_last_chosen_one_is_checked() -> None:
    honest = lantern_segment(1, np.zeros(5))
    observations = honest.observations.copy()
    observations[2] += 1
    forged = Segment.create(LANTERN.id, "e", 0, observations, honest.actions, honest.true_rewards, honest.origin)
    with Replayer(LANTERN) as replayer:
        assert len(replayer.frames(forged, [0, 1])) == 2
        with pytest.raises(DataError, match="step 2 of its episode looks different"):
            replayer.frames(forged, [0, 4])


def test_episodes_of_one_seed_that_act_differently_are_told_apart() -> None:
    pool, frames = record(EnvConfig(id="Pendulum-v1"), 60)
    first, later = (next(s for s in pool.sample_segments(200, 5, np.random.default_rng(0)) if s.start_step in steps)
                    for steps in ([0], range(10, 20)))  # fmt: skip
    assert first.origin is not None
    with Replayer(EnvConfig(id="Pendulum-v1")) as replayer:
        observation = first.observations[:1]
        other = Segment.create(
            first.env_id, "other", 0, observation, -first.actions[:1], first.true_rewards[:1], first.origin
        )
        replayer.frames(other)
        start = later.start_step
        np.testing.assert_array_equal(replayer.frames(later), frames[later.episode_id][start : start + 5])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "ALE/Pong-v5", "LunarLander-v3", LANTERN.id])
def test_environments_that_draw_are_accepted(env_id: str) -> None:
    check_drawing(EnvConfig(id=env_id))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", r"draws object \(\)\. A clip needs"),
        ("gray", r"draws uint8 \(8, 8\)\. A clip needs"),
        ("brightness", r"draws float32 \(8, 8, 3\)\. A clip needs"),
        ("broken", r"draws no frames \(RuntimeError: no display\)"),
        ("in the dark", r"draws no frames \(RuntimeError: no reset\)"),
    ],
)
def test_environments_that_draw_no_frames_are_refused_in_one_line(fault: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{LANTERN.id} {message}") as raised:
        check_drawing(EnvConfig(id=LANTERN.id, kwargs={"fault": fault}))
    assert "\n" not in str(raised.value)


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
