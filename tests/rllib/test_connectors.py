from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from themis_ray.config import load_config, resolve
from themis_ray.rllib import build_algorithm_config
from themis_ray.rllib.connectors import PREDICTED_REWARDS, PayPredictedRewards
from themis_ray.rllib.episodes import attach_column, to_chunk, to_transitions

GAMMA, LAMBDA = 0.9, 0.8


def columns(**extra: Any) -> dict[str, Any]:
    return {
        DEFAULT_MODULE_ID: {
            Columns.REWARDS: torch.tensor([1.0, 2.0, 0.0, 3.0, 0.0]),
            Columns.LOSS_MASK: torch.tensor([True, True, False, True, False]),
            **extra,
        }
    }


def test_predictions_replace_rewards_and_phantom_steps_keep_zero() -> None:
    predicted = torch.tensor([0.5, -0.5, 7.0, 0.25, 7.0])
    batch = PayPredictedRewards()(batch=columns(**{PREDICTED_REWARDS: predicted}))
    rewards = batch[DEFAULT_MODULE_ID]
    assert rewards[Columns.REWARDS].tolist() == [0.5, -0.5, 0.0, 0.25, 0.0]
    assert PREDICTED_REWARDS not in rewards


def test_predictions_are_cast_and_reshaped_to_the_rewards() -> None:
    predicted = torch.tensor([[0.5], [-0.5], [7.0], [0.25], [7.0]], dtype=torch.float64)
    rewards = PayPredictedRewards()(batch=columns(**{PREDICTED_REWARDS: predicted}))[DEFAULT_MODULE_ID]
    assert rewards[Columns.REWARDS].dtype == torch.float32
    assert rewards[Columns.REWARDS].tolist() == [0.5, -0.5, 0.0, 0.25, 0.0]


def test_rewards_stay_without_predictions() -> None:
    batch = PayPredictedRewards()(batch=columns())
    assert batch[DEFAULT_MODULE_ID][Columns.REWARDS].tolist() == [1.0, 2.0, 0.0, 3.0, 0.0]


def test_every_step_is_paid_without_a_mask() -> None:
    batch = {"a": {Columns.REWARDS: torch.zeros(2), PREDICTED_REWARDS: torch.ones(2)}, "b": {}}
    assert PayPredictedRewards()(batch=batch)["a"][Columns.REWARDS].tolist() == [1.0, 1.0]


def make_episode(
    num_steps: int, rng: np.random.Generator, *, is_terminated: bool = False, start: int = 0, id_: str | None = None
) -> SingleAgentEpisode:
    return SingleAgentEpisode(
        id_=id_,
        observation_space=gym.spaces.Box(-1, 1, (4,), np.float32),
        action_space=gym.spaces.Discrete(2),
        observations=list(rng.uniform(-1, 1, (num_steps + 1, 4)).astype(np.float32)),
        actions=list(rng.integers(2, size=num_steps)),
        rewards=list(rng.normal(size=num_steps)),
        terminated=is_terminated,
        extra_model_outputs={
            Columns.ACTION_LOGP: [np.float32(-0.7)] * num_steps,
            Columns.ACTION_DIST_INPUTS: [np.zeros(2, np.float32)] * num_steps,
        },
        t_started=start,
        len_lookback_buffer=0,
    )


def test_episode_pieces_become_rows_in_order() -> None:
    rng = np.random.default_rng(0)
    first, second = make_episode(3, rng), make_episode(2, rng, is_terminated=True)
    rows = to_transitions([first, second])
    assert len(rows) == 5
    np.testing.assert_array_equal(rows.next_observations[:2], rows.observations[1:3])
    np.testing.assert_array_equal(rows.observations[3], second.get_observations(0))
    np.testing.assert_array_equal(rows.next_observations[4], second.get_observations(-1))
    np.testing.assert_allclose(rows.true_rewards, np.concatenate([first.get_rewards(), second.get_rewards()]))
    assert rows.terminated.tolist() == [False, False, False, False, True]


def test_a_truncated_piece_is_done_and_not_terminated() -> None:
    episode = make_episode(3, np.random.default_rng(0))
    episode.is_truncated = True
    assert not to_transitions([episode]).terminated.any()
    assert to_chunk(episode).is_done


def test_chunk_leaves_the_last_observation_out_and_knows_where_it_starts() -> None:
    episode = make_episode(4, np.random.default_rng(0), start=7, id_="e")
    chunk = to_chunk(episode)
    assert (chunk.episode_id, chunk.start_step, len(chunk), chunk.is_done) == ("e", 7, 4, False)
    np.testing.assert_array_equal(chunk.observations, np.stack(episode.get_observations(slice(0, 4))))
    assert chunk.true_rewards.dtype == np.float32


@pytest.fixture(scope="module")
def algorithm(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config, _ = resolve(
        load_config(
            None,
            [
                "env.id=CartPole-v1",
                "env.fixed_horizon=false",
                "algorithm.num_envs=2",
                f"algorithm.gamma={GAMMA}",
                f"algorithm.gae_lambda={LAMBDA}",
                "learn_reward=false",  # builds the same pipeline and no reward actor
            ],
        )
    )
    folder: Path = tmp_path_factory.mktemp("ppo")
    algorithm = build_algorithm_config(config, folder).build_algo()
    yield algorithm
    algorithm.stop()


def learner_pipeline(algorithm: Any) -> tuple[Any, Any]:
    learner = algorithm.learner_group._learner
    return learner._learner_connector, learner


@pytest.mark.ray
def test_a_built_ppo_swaps_rewards_once_and_before_advantages(algorithm: Any) -> None:
    kinds = [type(piece) for piece in learner_pipeline(algorithm)[0].connectors]
    assert kinds.count(PayPredictedRewards) == 1
    assert kinds.index(PayPredictedRewards) < kinds.index(GeneralAdvantageEstimation)


@pytest.mark.ray
@pytest.mark.parametrize("is_paid_in_predictions", [True, False])
def test_ppo_learns_advantages_of_the_predicted_reward(algorithm: Any, is_paid_in_predictions: bool) -> None:
    rng = np.random.default_rng(4)
    episodes = [make_episode(5, rng, is_terminated=True), make_episode(3, rng)]
    rewards = [np.asarray(episode.get_rewards(), np.float32) for episode in episodes]
    observations = [np.stack(episode.get_observations()) for episode in episodes]
    if is_paid_in_predictions:
        rewards = [rng.normal(size=len(r)).astype(np.float32) for r in rewards]
        for episode, predicted in zip(episodes, rewards, strict=True):
            attach_column(episode, PREDICTED_REWARDS, predicted)
    connector, learner = learner_pipeline(algorithm)
    batch = connector(rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics)
    rows = batch[DEFAULT_MODULE_ID]

    expected = []
    for episode, paid, states in zip(episodes, rewards, observations, strict=True):
        with torch.no_grad():
            values = learner.module[DEFAULT_MODULE_ID].compute_values({Columns.OBS: torch.from_numpy(states)}).numpy()
        values[-1] *= not episode.is_terminated
        advantage, targets = 0.0, []
        for t in reversed(range(len(paid))):
            advantage = paid[t] + GAMMA * values[t + 1] - values[t] + GAMMA * LAMBDA * advantage
            targets.insert(0, advantage + values[t])
        expected += targets
    mask = rows[Columns.LOSS_MASK].numpy().astype(bool)
    assert mask.sum() == 8
    np.testing.assert_allclose(rows[Columns.REWARDS].numpy()[mask], np.concatenate(rewards), rtol=1e-6)
    np.testing.assert_array_equal(rows[Columns.REWARDS].numpy()[~mask], 0)
    np.testing.assert_allclose(rows["value_targets"].numpy()[mask], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.ray
def test_the_reward_actor_has_its_own_bundle_in_the_placement_group(algorithm: Any) -> None:
    config = algorithm.config
    free = type(algorithm).default_resource_request(config)
    paid_config = config.copy(copy_frozen=False)
    paid_config.loop_settings = {**config.loop_settings, "learn_reward": True}
    paid = type(algorithm).default_resource_request(paid_config)
    assert paid.bundles == [*free.bundles, {"CPU": 0.5}]
