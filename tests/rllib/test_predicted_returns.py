"""Predicted returns of whole episodes."""

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from themis_ray.config import load_config, resolve
from themis_ray.rllib.loop import PreferenceLoop


def pieces(length: int, *cuts: int) -> list[SingleAgentEpisode]:
    """An episode of `length` steps, cut as a sampler's rounds cut it."""
    episode, found = SingleAgentEpisode(), []
    episode.add_env_reset(np.zeros(3, np.float32))
    for step in range(1, length + 1):
        episode.add_env_step(np.zeros(3, np.float32), np.zeros(1, np.float32), 0.0, truncated=step == length)
        if step in cuts:
            found.append(episode)
            episode = episode.cut()
    return [*found, episode]


def test_an_episode_that_began_before_the_first_prediction_does_not_count(tmp_path) -> None:
    config, spec = resolve(load_config(None, ["env.id=Pendulum-v1", "learn_reward=false"]))
    loop = PreferenceLoop(config, spec, tmp_path, None, None)

    def count(*episodes: SingleAgentEpisode) -> None:
        loop.count_predicted_returns(episodes, np.ones(sum(len(episode) for episode in episodes), np.float32))

    _, middle, end = pieces(10, 4, 7)
    whole_start, whole_end = pieces(8, 3)
    count(middle, whole_start)
    count(end)
    assert np.isnan(loop.predicted_return_mean)
    count(whole_end)
    assert loop.predicted_return_mean == pytest.approx(8)
    count(*pieces(6, 2))
    assert loop.predicted_return_mean == pytest.approx(7)
