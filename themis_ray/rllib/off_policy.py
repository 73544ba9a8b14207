"""SAC and DQN, paid in predicted reward from a flat replay."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS

from themis_ray.envs import EnvSpec
from themis_ray.loop_settings import MAX_STEPS_BETWEEN_REPORTS, LoopSettings, required
from themis_ray.reward_actor import PendingPrediction
from themis_ray.rllib.base import NUM_REFERENCE_OBSERVATIONS, PreferenceAlgorithm, PreferenceConfig
from themis_ray.rllib.episodes import to_transitions
from themis_ray.rllib.learners import ReplayLearner
from themis_ray.rllib.replay import ReplayBuffer, Transitions

__all__ = ["PreferenceDQN", "PreferenceDQNConfig", "PreferenceSAC", "PreferenceSACConfig"]

logger = logging.getLogger("themis_ray")

# All of a million transitions of vectors and 150 000 of Atari's stacked screens fit.
MAX_REPLAY_BYTES = 2**33


class ReplayAlgorithm(PreferenceAlgorithm):
    """What SAC and DQN share: flat replay with both rewards, and updates in one call per sampling round."""

    _pending: tuple[list[Any], Transitions, PendingPrediction | None] | None = None

    def _make_replay(self, settings: LoopSettings, spec: EnvSpec) -> ReplayBuffer:
        asked = min(required(settings.algorithm.replay_capacity), settings.num_env_steps + MAX_STEPS_BETWEEN_REPORTS)
        capacity = ReplayBuffer.fitting_capacity(asked, MAX_REPLAY_BYTES, spec.observation_space, spec.action_space)
        if capacity < asked:
            logger.warning(
                "%s: %d transitions would take more than %d GiB, so %d are kept. Set algorithm.replay_capacity to keep "
                "fewer.",
                *(spec.id, asked, MAX_REPLAY_BYTES // 2**30, capacity),
            )
        return ReplayBuffer(capacity, spec.observation_space, spec.action_space)

    @property
    def replay(self) -> ReplayBuffer:
        """Where experience is kept."""
        assert self.loop.replay is not None
        return self.loop.replay

    def training_step(self) -> None:
        """Sample a round while the last one's prediction is made, hold a session if one is due, run owed updates.

        The updates of exploration come before the session: it may draw new critics, which exploration must not teach.
        """
        loop, start_step = self.loop, self.env_steps
        phase = loop.phase(start_step)
        episodes = self._sample_round()
        self._settle()
        transitions = to_transitions(episodes)
        pending = None
        if loop.has_fitted_reward:
            pending = loop.predict_later(transitions.observations, transitions.actions)
        self._pending = (episodes, transitions, pending)
        if phase == "exploration":
            self._run_owed_updates(len(transitions), is_exploring=True)
        self._hold_session_if_due(start_step)
        if phase == "preference" and (loop.has_fitted_reward or not loop.settings.learn_reward):
            self._run_owed_updates(len(transitions), is_exploring=False)

    def _pay_anew(self) -> None:
        self._settle()
        self.replay.relabel(self.loop.predict)

    def _settle(self) -> None:
        """Wait for the last round's prediction and store its transitions."""
        if self._pending is None:
            return
        episodes, transitions, pending = self._pending
        self._pending = None
        rewards = np.zeros(len(transitions), np.float32)
        if pending is not None:
            rewards = self.loop.collect(pending)
            self.loop.count_predicted_returns(episodes, rewards)
        self.replay.add(transitions, rewards)

    def _run_owed_updates(self, num_new_steps: int, *, is_exploring: bool) -> None:
        loop = self.loop
        if self.replay.size == 0:
            return
        loop.num_updates_owed += num_new_steps * required(loop.settings.algorithm.updates_per_env_step)
        num_updates, loop.num_updates_owed = divmod(loop.num_updates_owed, 1)
        if num_updates:
            self._update(int(num_updates), is_exploring=is_exploring)
            self._sync_weights()

    def _update(self, num_updates: int, *, is_exploring: bool) -> None:
        loop, size = self.loop, self.config.train_batch_size_per_learner
        rng, replay = loop.streams["replay"], self.replay
        rows = replay.sample_rows(num_updates * size, rng)
        if is_exploring:
            reference = replay.observations[replay.sample_rows(NUM_REFERENCE_OBSERVATIONS, rng)]
            rewards = loop.intrinsic_rewards(replay.next_observations[rows], reference)
            last_rows, num_more = rows, np.zeros(len(rows), np.int64)
        else:
            paid = replay.predicted_rewards if loop.settings.learn_reward else replay.true_rewards
            n = loop.settings.algorithm.n_step or 1
            rewards, last_rows, num_more = replay.n_step(rows, paid, n, self.config.gamma)
        # Learners discount by one step; the steps between it and the last row make that row's future worth less.
        discounts = (self.config.gamma**num_more).astype(np.float32)
        columns = {
            Columns.OBS: replay.observations[rows],
            Columns.NEXT_OBS: replay.next_observations[last_rows],
            Columns.ACTIONS: replay.actions[rows],
            Columns.REWARDS: rewards,
            Columns.TERMINATEDS: 1 - discounts * (1 - replay.terminated[last_rows]),
        }
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=len(rows))
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(batch=batch, timesteps=self._timesteps(), minibatch_size=size)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)


class ReplayConfig(PreferenceConfig):
    """What the configurations of SAC and DQN share."""

    def get_default_learner_class(self) -> Any:
        """Return the learner that runs a round's updates in one call."""
        return ReplayLearner


class PreferenceSAC(ReplayAlgorithm, SAC):
    """Soft actor-critic for Box and Discrete actions, paid in predicted reward."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferenceSACConfig()


class PreferenceSACConfig(ReplayConfig, SACConfig):
    """SACConfig with the loop's settings and our learner."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferenceSAC)


class PreferenceDQN(ReplayAlgorithm, DQN):
    """Double DQN for Discrete actions, paid in predicted reward."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferenceDQNConfig()


class PreferenceDQNConfig(ReplayConfig, DQNConfig):
    """DQNConfig with the loop's settings and our learner."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferenceDQN)
