"""One RLlib Algorithm per learner, each with the preference loop as its checkpointable component."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.registry import register_env

from themis_ray.envs import EnvConfig, EnvSpec, get_env_spec, make_env
from themis_ray.errors import ConfigError
from themis_ray.rllib.connectors import PREDICTED_REWARDS, PayPredictedRewards
from themis_ray.rllib.episodes import attach_column, to_chunk, to_transitions
from themis_ray.rllib.learners import ReplayLearner
from themis_ray.rllib.loop import COMPONENT_PREFERENCE_LOOP, PreferenceLoop
from themis_ray.rllib.modules import DQNModule, PPOModule, SACModule
from themis_ray.rllib.replay import ReplayBuffer, Transitions
from themis_ray.rllib.reward_actor import PendingPrediction, RewardModel, RewardModelSpec
from themis_ray.rllib.settings import LoopSettings

__all__ = ["PreferenceDQN", "PreferencePPO", "PreferenceSAC", "build_algorithm_config"]

ENV_NAME = "themis_env"
NUM_PPO_ROUNDS = 4
NUM_REFERENCE_OBSERVATIONS = 512
MAX_STEPS_BETWEEN_REPORTS = 1000

register_env(ENV_NAME, lambda context: make_env(EnvConfig(**context)))


class PreferenceAlgorithm(Algorithm):
    """What the learners share: building, saving and ending the preference loop. Mixed in before an RLlib Algorithm."""

    loop: PreferenceLoop | None = None

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        """Add the reward actor's bundle to what RLlib asks for, so that a Tune trial's placement group has room."""
        request = super().default_resource_request(config)
        settings = LoopSettings(**cls.get_default_config().update_from_dict(config).loop_settings)
        if not settings.learn_reward:
            return request
        resources = settings.resources
        bundle = {"CPU": resources.reward_actor_num_cpus, "GPU": resources.reward_actor_num_gpus}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        bundles = request.bundles + ([bundle] if bundle else [])
        return PlacementGroupFactory(bundles, strategy=request.strategy)

    def setup(self, config: Any) -> None:
        """Build what RLlib builds, then the reward actor and the loop."""
        super().setup(config)
        self.settings = settings = LoopSettings(**self.config.loop_settings)
        spec = get_env_spec(settings.env)
        reward_model = None
        if settings.learn_reward:
            resources = settings.resources
            reward_model = RewardModel(
                RewardModelSpec(
                    spec.observation_space, spec.action_space, spec.observation_kind, settings.reward, settings.seed
                ),
                name=f"reward-model-{self.trial_id or 'run'}-{uuid.uuid4().hex[:8]}",
                num_cpus=resources.reward_actor_num_cpus,
                num_gpus=resources.reward_actor_num_gpus,
            )
        dataset_path = Path(self.config.dataset_path or self.logdir)
        self.loop = PreferenceLoop(settings, spec, dataset_path, reward_model, self._make_replay(settings, spec))

    def _make_replay(self, settings: LoopSettings, spec: EnvSpec) -> ReplayBuffer | None:
        """Return where experience is kept between updates; on-policy learners keep none."""
        del settings, spec
        return None

    def _settle(self) -> None:
        """Finish what is under way, before the state is read."""

    @property
    def env_steps(self) -> int:
        """Env steps done so far, over all env runners."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    def reset_environments(self) -> None:
        """Start a new episode in every environment, seeded from the stream `env`.

        Simulators cannot be saved, so a restored run calls this; a run that calls it at the same point goes on alike.
        """
        seed = self.loop.streams.draw_seed("env")

        def reset(env_runner: Any) -> None:
            env_runner._seed = seed + 1000 * (env_runner.worker_index or 0)
            env_runner._needs_initial_reset = True

        self.env_runner_group.foreach_env_runner(reset)

    def _sample_round(self) -> list[Any]:
        """Step every environment for one fragment; return the episode pieces, which the pool has seen."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            episodes, results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                concat=True,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        episodes = [episode for episode in episodes if len(episode)]
        for episode in episodes:
            self.loop.pool.add(to_chunk(episode))
        return episodes

    def _timesteps(self) -> dict[str, Any]:
        return {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps}

    def _sync_weights(self) -> None:
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return RLlib's components and the loop, which is not there yet when RLlib's own set-up asks."""
        components = super().get_checkpointable_components()
        return components if self.loop is None else [*components, (COMPONENT_PREFERENCE_LOOP, self.loop)]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        """Return RLlib's state and the loop's."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_PREFERENCE_LOOP, components, not_components):
            self._settle()
            state[COMPONENT_PREFERENCE_LOOP] = self.loop.get_state()
        return state

    def set_state(self, state: Any) -> None:
        """Restore RLlib's state, then the loop's."""
        super().set_state(state)
        if COMPONENT_PREFERENCE_LOOP in state:
            self.loop.set_state(state[COMPONENT_PREFERENCE_LOOP])

    def cleanup(self) -> None:
        """End the reward actor with the algorithm."""
        try:
            if self.loop.reward_model is not None:
                self.loop.reward_model.stop()
        finally:
            super().cleanup()


class PreferencePPO(PreferenceAlgorithm, PPO):
    """PPO whose rewards are swapped by a learner connector, with predictions made while sampling goes on."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferencePPOConfig()

    def training_step(self) -> None:
        """Sample a batch, hold a feedback session if one is due, and learn from predicted rewards."""
        loop, num_steps = self.loop, 0
        episodes: list[Any] = []
        rounds: list[tuple[list[Any], PendingPrediction | None]] = []
        start_step = self.env_steps
        while num_steps < self.config.total_train_batch_size:
            pieces = self._sample_round()
            num_steps += sum(len(piece) for piece in pieces)
            episodes += pieces
            # One prediction in flight at a time: what is merged with what must not depend on timing.
            if rounds and rounds[-1][1] is not None:
                ray.wait([rounds[-1][1].reference])
            rounds.append((pieces, self._predict_later(pieces) if loop.has_fitted_reward else None))
        if loop.hold_session_if_due(self.env_steps):
            rounds = [(episodes, self._predict_later(episodes))]
        phase = loop.phase(start_step)
        for pieces, pending in rounds:
            if phase == "exploration":
                self._attach(pieces, self._intrinsic_rewards(pieces, episodes))
            elif pending is not None:
                rewards = loop.reward_model.collect(pending)
                loop.count_predicted_returns(pieces, rewards)
                self._attach(pieces, rewards)
        if loop.settings.learn_reward and phase == "preference" and not loop.has_fitted_reward:
            return  # No answer yet: there is nothing to be paid in.
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
        return self.loop.reward_model.predict_later(rows.observations, rows.actions)

    def _intrinsic_rewards(self, episodes: list[Any], reference: list[Any]) -> NDArray[np.float32]:
        observations = to_transitions(reference).observations
        rows = self.loop.streams["exploration"].integers(len(observations), size=NUM_REFERENCE_OBSERVATIONS)
        return self.loop.intrinsic_rewards(to_transitions(episodes).next_observations, observations[rows])

    @staticmethod
    def _attach(episodes: list[Any], rewards: NDArray[np.float32]) -> None:
        stops = np.cumsum([len(episode) for episode in episodes])
        for episode, part in zip(episodes, np.split(rewards, stops[:-1]), strict=True):
            attach_column(episode, PREDICTED_REWARDS, part)


class PreferencePPOConfig(PPOConfig):
    """PPOConfig with the loop's settings and the connector that pays predicted rewards."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferencePPO)
        self.loop_settings: dict[str, Any] = {}
        self.dataset_path: str | None = None

    def build_learner_connector(
        self, input_observation_space: Any, input_action_space: Any, device: Any = None
    ) -> Any:
        """Put the swap after the batch is finished and before advantages are estimated."""
        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        pipeline.insert_after(NumpyToTensor, PayPredictedRewards())
        return pipeline


class ReplayAlgorithm(PreferenceAlgorithm):
    """What SAC and DQN share: flat replay with both rewards, and updates in one call per sampling round."""

    _pending: tuple[list[Any], Transitions, PendingPrediction | None] | None = None

    def _make_replay(self, settings: LoopSettings, spec: EnvSpec) -> ReplayBuffer:
        capacity = min(settings.algorithm.replay_capacity or 1, settings.num_env_steps + MAX_STEPS_BETWEEN_REPORTS)
        return ReplayBuffer(capacity, spec.observation_space, spec.action_space)

    def training_step(self) -> None:
        """Sample a round while the last one's prediction is made, hold a session if one is due, run owed updates."""
        loop = self.loop
        start_step = self.env_steps
        episodes = self._sample_round()
        self._settle()
        transitions = to_transitions(episodes)
        pending = None
        if loop.has_fitted_reward:
            pending = loop.reward_model.predict_later(transitions.observations, transitions.actions)
        self._pending = (episodes, transitions, pending)
        was_fitted = loop.has_fitted_reward
        if loop.hold_session_if_due(self.env_steps):
            self._settle()
            loop.replay.relabel(loop.reward_model.predict)
            if not was_fitted:
                self._reset_critics()
        elif not loop.settings.learn_reward and start_step < loop.num_steps_before_feedback <= self.env_steps:
            self._reset_critics()
        phase = loop.phase(start_step)
        is_paid = phase == "exploration" or loop.has_fitted_reward or not loop.settings.learn_reward
        if phase == "seed" or not is_paid or loop.replay.size == 0:
            return
        loop.num_updates_owed += len(transitions) * loop.settings.algorithm.updates_per_env_step
        num_updates, loop.num_updates_owed = divmod(loop.num_updates_owed, 1)
        if num_updates:
            self._update(int(num_updates), is_exploring=phase == "exploration")
            self._sync_weights()

    def _settle(self) -> None:
        """Wait for the last round's prediction and store its transitions."""
        if self._pending is None:
            return
        episodes, transitions, pending = self._pending
        self._pending = None
        rewards = np.zeros(len(transitions), np.float32)
        if pending is not None:
            rewards = self.loop.reward_model.collect(pending)
            self.loop.count_predicted_returns(episodes, rewards)
        self.loop.replay.add(transitions, rewards)

    def _reset_critics(self) -> None:
        """Forget the values that exploration's rewards taught; the policy stays (PEBBLE)."""
        if self.loop.num_steps_before_feedback > self.loop.num_seed_steps:
            self.learner_group.foreach_learner(lambda learner: learner.reset_critics())

    def _update(self, num_updates: int, *, is_exploring: bool) -> None:
        loop, size = self.loop, self.config.train_batch_size_per_learner
        rng, replay = loop.streams["replay"], loop.replay
        rows = replay.sample_rows(num_updates * size, rng)
        if is_exploring:
            reference = replay.observations[replay.sample_rows(NUM_REFERENCE_OBSERVATIONS, rng)]
            rewards = loop.intrinsic_rewards(replay.next_observations[rows], reference)
        else:
            rewards = (replay.predicted_rewards if loop.settings.learn_reward else replay.true_rewards)[rows]
        columns = {
            Columns.OBS: replay.observations[rows],
            Columns.NEXT_OBS: replay.next_observations[rows],
            Columns.ACTIONS: replay.actions[rows],
            Columns.REWARDS: rewards,
            Columns.TERMINATEDS: replay.terminated[rows],
        }
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=len(rows))
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(batch=batch, timesteps=self._timesteps(), minibatch_size=size)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)


class PreferenceSAC(ReplayAlgorithm, SAC):
    """Soft actor-critic for Box and Discrete actions, paid in predicted reward."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferenceSACConfig()


class PreferenceSACConfig(SACConfig):
    """SACConfig with the loop's settings and our learner."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferenceSAC)
        self.loop_settings: dict[str, Any] = {}
        self.dataset_path: str | None = None

    def get_default_learner_class(self) -> Any:
        """Return the learner that runs a round's updates in one call."""
        return ReplayLearner


class PreferenceDQN(ReplayAlgorithm, DQN):
    """Double DQN for Discrete actions, paid in predicted reward."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferenceDQNConfig()


class PreferenceDQNConfig(DQNConfig):
    """DQNConfig with the loop's settings and our learner."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferenceDQN)
        self.loop_settings: dict[str, Any] = {}
        self.dataset_path: str | None = None

    def get_default_learner_class(self) -> Any:
        """Return the learner that runs a round's updates in one call."""
        return ReplayLearner


def _ppo_config(settings: LoopSettings) -> PreferencePPOConfig:
    algorithm = settings.algorithm
    num_envs = algorithm.num_envs * max(1, settings.resources.num_env_runners)
    fragment = max(1, round(algorithm.batch_size / (num_envs * NUM_PPO_ROUNDS)))
    batch_size = fragment * num_envs * max(1, round(algorithm.batch_size / (fragment * num_envs)))
    config = PreferencePPOConfig()
    config.env_runners(rollout_fragment_length=fragment)
    config.training(
        train_batch_size_per_learner=batch_size // max(1, settings.resources.num_learners),
        minibatch_size=min(algorithm.minibatch_size, batch_size),
        num_epochs=algorithm.num_epochs,
        lambda_=algorithm.gae_lambda,
        clip_param=algorithm.clip_range,
        entropy_coeff=algorithm.entropy_coefficient,
        vf_loss_coeff=algorithm.value_coefficient,
        vf_clip_param=float("inf"),
        use_kl_loss=False,
        grad_clip=algorithm.max_gradient_norm,
        grad_clip_by="global_norm",
    )
    return config


def _replay_config(settings: LoopSettings, config: Any) -> Any:
    algorithm = settings.algorithm
    runners = algorithm.num_envs * max(1, settings.resources.num_env_runners)
    config.env_runners(rollout_fragment_length=max(1, round(algorithm.round_num_env_steps / runners)))
    config.training(
        train_batch_size_per_learner=algorithm.batch_size,
        num_steps_sampled_before_learning_starts=0,
        n_step=1,
        tau=algorithm.tau,
        # RLlib's own buffer is built but never filled.
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 1},
    )
    return config


def _model_config(settings: LoopSettings) -> dict[str, Any]:
    algorithm = settings.algorithm
    model: dict[str, Any] = {"hidden_sizes": list(algorithm.hidden_sizes)}
    if algorithm.name != "ppo":
        model["num_seed_steps"] = settings.exploration.num_seed_steps
    if algorithm.name == "sac":
        model["initial_alpha"] = algorithm.initial_alpha
    if algorithm.name == "dqn":
        model["final_epsilon"] = algorithm.final_epsilon
        model["epsilon_steps"] = int(algorithm.epsilon_share * settings.num_env_steps)
    return model


def build_algorithm_config(settings: LoopSettings, dataset_path: Path | None = None) -> AlgorithmConfig:
    """Translate resolved settings into an RLlib configuration, ready for `build_algo()` or a Tune param space.

    Args:
        settings: With algorithm.name and every setting of that learner filled in (`themis_ray.config.resolve`).
        dataset_path: Folder of the preference dataset; None puts it into the algorithm's own log folder.

    Raises:
        ConfigError: More than one learner is asked for where updates cannot be shared.
    """
    algorithm, resources = settings.algorithm, settings.resources
    if algorithm.name != "ppo" and resources.num_learners > 1:
        raise ConfigError(
            f"resources.num_learners={resources.num_learners} was given, but {algorithm.name} learns in one place. "
            "Set it to 0 or 1, or use algorithm.name=ppo."
        )
    modules: Mapping[str, Any] = {"ppo": PPOModule, "sac": SACModule, "dqn": DQNModule}
    config: Any
    if algorithm.name == "ppo":
        config = _ppo_config(settings)
    else:
        config = _replay_config(settings, PreferenceSACConfig() if algorithm.name == "sac" else PreferenceDQNConfig())
    config.environment(ENV_NAME, env_config=settings.env.model_dump())
    config.env_runners(
        num_env_runners=resources.num_env_runners,
        num_envs_per_env_runner=algorithm.num_envs,
        num_cpus_per_env_runner=resources.num_cpus_per_env_runner,
        episode_lookback_horizon=0,
    )
    config.learners(num_learners=resources.num_learners, num_gpus_per_learner=resources.num_gpus_per_learner)
    config.training(gamma=algorithm.gamma)
    rate = algorithm.learning_rate
    if algorithm.name == "sac":
        config.training(actor_lr=rate, critic_lr=rate, alpha_lr=rate)
    else:
        config.training(lr=rate)
    config.rl_module(
        rl_module_spec=RLModuleSpec(module_class=modules[algorithm.name], model_config=_model_config(settings))
    )
    config.reporting(
        min_time_s_per_iteration=0,
        min_sample_timesteps_per_iteration=max(1, min(MAX_STEPS_BETWEEN_REPORTS, settings.num_env_steps // 40)),
        metrics_num_episodes_for_smoothing=10,
    )
    config.debugging(seed=settings.seed, log_level="ERROR")
    config.loop_settings = settings.model_dump(include=set(LoopSettings.model_fields))
    config.dataset_path = None if dataset_path is None else str(dataset_path)
    return config
