"""PPO, paid in predicted reward."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS

from themis_ray.reward_actor import PendingPrediction
from themis_ray.rllib.base import NUM_REFERENCE_OBSERVATIONS, PreferenceAlgorithm, PreferenceConfig
from themis_ray.rllib.connectors import PREDICTED_REWARDS, PayPredictedRewards
from themis_ray.rllib.episodes import attach_column, to_transitions
from themis_ray.rllib.learners import PolicyLearner

__all__ = ["PreferencePPO", "PreferencePPOConfig"]


class PreferencePPO(PreferenceAlgorithm, PPO):
    """PPO whose rewards are swapped by a learner connector, with predictions made while sampling goes on."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferencePPOConfig()

    def training_step(self) -> None:
        """Sample a batch, hold a feedback session if one is due, and learn from predicted rewards.

        A batch of exploration is learned from before the session.
        """
        loop, start_step = self.loop, self.env_steps
        phase = loop.phase(start_step)
        rounds = self._sample_batch()
        episodes = [piece for pieces, _ in rounds for piece in pieces]
        if phase == "exploration":
            for pieces, _ in rounds:
                self._attach(pieces, self._intrinsic_rewards(pieces, episodes))
            self._learn(episodes)
            self._hold_session_if_due(start_step)
            return
        if self._hold_session_if_due(start_step):
            rounds = [(episodes, self._predict_later(episodes))]
        for pieces, pending in rounds:
            if pending is not None:
                rewards = loop.collect(pending)
                loop.count_predicted_returns(pieces, rewards)
                self._attach(pieces, rewards)
        if loop.settings.learn_reward and not loop.has_fitted_reward:
            return  # No answer yet: there is nothing to be paid in.
        self._learn(episodes)

    def _sample_batch(self) -> list[tuple[list[Any], PendingPrediction | None]]:
        """Sample a whole batch in rounds, each with its prediction under way once there is a fitted reward."""
        rounds: list[tuple[list[Any], PendingPrediction | None]] = []
        num_steps = 0
        while num_steps < self.config.total_train_batch_size:
            pieces = self._sample_round()
            num_steps += sum(len(piece) for piece in pieces)
            # One prediction in flight at a time: what is merged with what must not depend on timing.
            if rounds and rounds[-1][1] is not None:
                ray.wait([rounds[-1][1].reference])
            rounds.append((pieces, self._predict_later(pieces) if self.loop.has_fitted_reward else None))
        return rounds

    def _learn(self, episodes: list[Any]) -> None:
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                episodes=episodes,
                timesteps=self._timesteps(),
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._sync_weights()

    def _predict_later(self, episodes: list[Any]) -> PendingPrediction:
        rows = to_transitions(episodes)
        return self.loop.predict_later(rows.observations, rows.actions)

    def _intrinsic_rewards(self, episodes: list[Any], reference: list[Any]) -> NDArray[np.float32]:
        observations = to_transitions(reference).observations
        rows = self.loop.streams["exploration"].integers(len(observations), size=NUM_REFERENCE_OBSERVATIONS)
        return self.loop.intrinsic_rewards(to_transitions(episodes).next_observations, observations[rows])

    @staticmethod
    def _attach(episodes: list[Any], rewards: NDArray[np.float32]) -> None:
        stops = np.cumsum([len(episode) for episode in episodes])
        for episode, part in zip(episodes, np.split(rewards, stops[:-1]), strict=True):
            attach_column(episode, PREDICTED_REWARDS, part)


class PreferencePPOConfig(PreferenceConfig, PPOConfig):
    """PPOConfig with the loop's settings and the connector that pays predicted rewards."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferencePPO)

    def get_default_learner_class(self) -> Any:
        """Return the learner that can keep the policy near a reference."""
        return PolicyLearner

    def build_learner_connector(self, input_observation_space: Any, input_action_space: Any, device: Any = None) -> Any:
        """Put the swap after the batch is finished and before advantages are estimated."""
        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        pipeline.insert_after(NumpyToTensor, PayPredictedRewards())
        return pipeline
