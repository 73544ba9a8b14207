"""What a look at the current policy measures and keeps."""

import numpy as np
import pytest

from themis_ray.config import load_config, resolve
from themis_ray.data import EpisodeChunk
from themis_ray.rllib import looks
from themis_ray.rllib.loop import PreferenceLoop

SETTINGS = ["env.id=Pendulum-v1", "feedback.segment_length=10", "num_env_steps=9000", "feedback.newest_num_episodes=4"]


class Members:
    """Three members that predict linear rewards of the observations: what is common to them, and own noise."""

    def __init__(self, common: float = 0.0) -> None:
        self.version = 1
        self.weights = common + np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def rewards(self, observations):
        return np.moveaxis(observations @ self.weights.T, -1, 0)

    def segment_returns(self, observations, actions):
        assert len(observations) == len(actions)
        return self.rewards(observations).sum(axis=2)


def look(folder, members) -> PreferenceLoop:
    config, spec = resolve(load_config(None, SETTINGS))
    loop = PreferenceLoop(config, spec, folder, members, None)
    rng = np.random.default_rng(0)
    for episode in range(6):
        observations = rng.normal(size=(25, 3)).astype(np.float32)
        loop.pool.add(EpisodeChunk(f"e{episode}", 0, observations, np.zeros((25, 1)), rng.normal(size=25), True))
    loop.look_if_due(9000)
    return loop


def test_disagreement_about_rewards_shows_where_the_members_are_sure_of_every_pair(tmp_path) -> None:
    unsure, sure = (look(tmp_path / str(common), Members(common)) for common in (0.0, 100.0))
    assert sure.info["policy_disagreement"] < 0.1 < unsure.info["policy_disagreement"]
    assert sure.info["policy_reward_std"] == pytest.approx(unsure.info["policy_reward_std"], rel=1e-3)


def test_rewards_of_steps_add_up_to_returns_of_segments(tmp_path, monkeypatch) -> None:
    loop = look(tmp_path, Members())
    segments = loop.pool.sample_segments(7, 10, np.random.default_rng(1))
    monkeypatch.setattr(looks, "SEGMENT_CHUNK_BYTES", 2 * segments[0].observations.nbytes)
    rewards = looks._member_rewards(loop.reward_model, segments)
    observations = np.stack([segment.observations for segment in segments])
    np.testing.assert_allclose(rewards, loop.reward_model.rewards(observations), rtol=1e-5)
    np.testing.assert_allclose(
        rewards.sum(axis=2), looks.member_returns(loop.reward_model, segments), rtol=1e-4, atol=1e-5
    )


def test_a_tie_of_predictions_is_half_right() -> None:
    margins = np.array([1.0, 2.0, -1.0, -2.0, 0.0])
    assert looks._share_in_order(margins, np.zeros(5)) == 0.5
    assert looks._share_in_order(margins[:2], np.zeros(2)) == 0.5
    assert looks._share_in_order(margins, np.array([1.0, -1.0, -1.0, 0.0, 5.0])) == (1 + 0 + 1 + 0.5) / 4


def test_what_a_look_keeps_does_not_keep_whole_episodes(tmp_path) -> None:
    loop = look(tmp_path, Members())
    (point,) = loop.looks.watch.get_state()["points"]
    assert len(point["segments"]) == 40
    for segment in point["segments"]:
        assert segment.origin is None
        assert segment.observations.base is None
        assert len(segment.observations) == 10


def test_episodes_that_became_shorter_than_a_segment_end_no_run(tmp_path, caplog) -> None:
    config, spec = resolve(load_config(None, ["env.id=CartPole-v1", "env.fixed_horizon=false", "num_env_steps=9000"]))
    model = Members()
    model.weights = np.zeros((3, 4), np.float32)
    loop = PreferenceLoop(config, spec, tmp_path, model, None)
    rng = np.random.default_rng(0)
    for episode in range(200):
        observations = rng.normal(size=(9, 4)).astype(np.float32)
        loop.pool.add(EpisodeChunk(f"e{episode}", 0, observations, np.zeros(9, np.int64), np.ones(9), True))
    loop.look_if_due(9000)
    assert loop.measure_reward() == {}
    assert not loop.hold_session_if_due(9000)
    assert not loop.hold_session_if_due(9000)
    assert caplog.text.count("Feedback that is due waits for two distinct segments of 50 steps") == 1
    assert "Lower feedback.segment_length" in caplog.text


def test_a_pool_of_one_segment_again_and_again_waits_too(tmp_path, caplog) -> None:
    config, spec = resolve(load_config(None, SETTINGS))
    loop = PreferenceLoop(config, spec, tmp_path, Members(), None)
    for episode in range(30):
        loop.pool.add(
            EpisodeChunk(f"e{episode}", 0, np.zeros((10, 3), np.float32), np.zeros((10, 1)), np.ones(10), True)
        )
    loop.look_if_due(9000)
    assert loop.measure_reward() == {}
    assert not loop.hold_session_if_due(9000)
    assert "2 distinct segments of 10 steps are needed" in caplog.text
    assert not loop.dataset.num_questions
