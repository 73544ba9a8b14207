"""What every learner shares: building, saving and ending the preference loop."""

from __future__ import annotations

import errno
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.tune.execution.placement_groups import PlacementGroupFactory

from themis_ray.envs import EnvSpec, get_env_spec
from themis_ray.errors import CheckpointError, ThemisError
from themis_ray.loop_settings import LoopSettings
from themis_ray.randomness import RandomStreams, seed_python
from themis_ray.reward_actor import RewardModel, RewardModelSpec
from themis_ray.rllib.episodes import to_chunk
from themis_ray.rllib.loop import COMPONENT_PREFERENCE_LOOP, PreferenceLoop
from themis_ray.rllib.modules import start_from_reference
from themis_ray.rllib.reference import open_reference
from themis_ray.rllib.replay import ReplayBuffer

__all__ = ["NUM_REFERENCE_OBSERVATIONS", "PreferenceAlgorithm", "PreferenceConfig"]

NUM_REFERENCE_OBSERVATIONS = 512
# How long a run waits for env runners when all are lost: a cluster may have to start machines first.
ENV_RUNNER_TIMEOUT_S = 1800.0
ENV_RUNNER_WAIT_S = 0.5


class PreferenceConfig:
    """What the learners' configurations hold beside RLlib's own. Mixed in before an RLlib configuration."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class)  # type: ignore[call-arg]
        self.loop_settings: dict[str, Any] = {}
        self.dataset_path: str | None = None
        self.kl_coefficient = 0.0


class PreferenceAlgorithm(Algorithm):
    """What the learners share: building, saving and ending the preference loop. Mixed in before an RLlib Algorithm.

    Attributes:
        loop_class: The preference loop that `setup` builds.
        is_pretraining: Whether the run ends with exploration; what follows is left to the runs that start from it.
    """

    loop_class: type[PreferenceLoop] = PreferenceLoop
    is_pretraining = False
    _loop: PreferenceLoop | None = None
    _needs_reference = False

    @property
    def loop(self) -> PreferenceLoop:
        """The preference loop, once `setup` has built it."""
        assert self._loop is not None
        return self._loop

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        """Add the reward actor's bundle to what RLlib asks for, so that a Tune trial's placement group has room."""
        request = super().default_resource_request(config)
        settings = LoopSettings(**cls.get_default_config().update_from_dict(config).loop_settings)
        if not settings.has_reward_model:
            return request
        resources = settings.resources
        asked = {"CPU": resources.reward_actor_num_cpus, "GPU": resources.reward_actor_num_gpus}
        asked |= resources.reward_actor_custom_resources
        bundle = {name: amount for name, amount in asked.items() if amount}
        bundles = request.bundles + ([bundle] if bundle else [])
        return PlacementGroupFactory(bundles, strategy=request.strategy)

    def setup(self, config: Any) -> None:
        """Build what RLlib builds, then the reward actor and the loop."""
        super().setup(config)
        self.settings = settings = LoopSettings(**self.config.loop_settings)
        spec = get_env_spec(settings.env)
        reward_model = None
        if settings.has_reward_model:
            resources = settings.resources
            reward_model = RewardModel(
                RewardModelSpec(
                    spec.observation_space, spec.action_space, spec.observation_kind, settings.reward, settings.seed
                ),
                name=f"reward-model-{self.trial_id or 'run'}-{uuid.uuid4().hex[:8]}",
                num_cpus=resources.reward_actor_num_cpus,
                num_gpus=resources.reward_actor_num_gpus,
                custom_resources=resources.reward_actor_custom_resources,
                num_fit_threads=resources.num_fit_threads,
            )
        dataset_path = Path(self.config.dataset_path or self.logdir)
        self._loop = self.loop_class(settings, spec, dataset_path, reward_model, self._make_replay(settings, spec))
        self._needs_reference = settings.algorithm.reference is not None

    def _make_replay(self, settings: LoopSettings, spec: EnvSpec) -> ReplayBuffer | None:
        """Return where experience is kept between updates; on-policy learners keep none."""
        del settings, spec
        return None

    def _settle(self) -> None:
        """Finish what is under way, before the state is read."""

    def _hold_session_if_due(self, start_step: int) -> bool:
        """Hold a feedback session if one is due, with what it changes for this learner; tell whether one was held.

        Args:
            start_step: Env steps before the round that has just been sampled.
        """
        loop = self.loop
        was_fitted = loop.has_fitted_reward
        if loop.hold_session_if_due(self.env_steps):
            self._pay_anew()
            if not was_fitted:
                self._reset_critics()
            return True
        has_explored = start_step < loop.num_steps_before_feedback <= self.env_steps
        if has_explored and not loop.settings.learn_reward and not self.is_pretraining:
            self._reset_critics()
        return False

    def _pay_anew(self) -> None:
        """Predict what is kept of earlier rounds again, after a fit."""

    def _reset_critics(self) -> None:
        """Forget the values that exploration's rewards taught; the policy stays (PEBBLE)."""
        if self.loop.num_steps_before_feedback > self.loop.num_seed_steps:
            self.learner_group.foreach_learner(lambda learner: learner.reset_critics())
            self._sync_weights()

    def start_from_reference(self) -> None:
        """Start the policy from the weights of `algorithm.reference`, once; a restored algorithm has its own.

        Raises:
            CheckpointError: As in `open_reference`.
            ConfigError: As in `open_reference`.
        """
        if not self._needs_reference:
            return
        weights = open_reference(self.settings, self.loop.spec).weights
        self.learner_group.foreach_learner(
            lambda learner: start_from_reference(learner.module[DEFAULT_MODULE_ID].unwrapped(), weights)
        )
        self._needs_reference = False
        self._sync_weights()

    def restore_checkpoint(self, path: Path, advice: str) -> None:
        """Restore a checkpoint of RLlib's; errors that are not the checkpoint's fault pass as they are.

        Args:
            path: The checkpoint.
            advice: What to do when it cannot be read, a sentence.

        Raises:
            CheckpointError: It cannot be read.
            ThemisError: What it belongs to, such as stored preferences, has changed or cannot be read.
            OSError: The disk is full.
            RayActorError: The reward actor is gone.
        """
        try:
            self.restore_from_path(str(path.resolve()))
        except (ThemisError, RayActorError):
            raise
        except Exception as error:  # An unpickler raises anything at all.
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}). {advice}") from error

    def start_from_snapshot(self, path: Path, seed: int) -> None:
        """Take over what a pretraining run learned and saw, start fresh episodes, and hold the first session.

        Everything after is drawn from this run's own seed. With the snapshot's seed the random streams go on where
        they were, as if the pretraining run had not stopped.

        Args:
            path: RLlib's checkpoint in the snapshot.
            seed: The snapshot's seed.

        Raises:
            CheckpointError: As in `restore_checkpoint`.
        """
        self.restore_checkpoint(path, "Make the snapshot anew with themis pretrain.")
        own_seed, timesteps = self.settings.seed, self._timesteps()
        if seed != own_seed:
            self.loop.streams = RandomStreams(own_seed)
            seed_python(own_seed)
            torch.manual_seed(own_seed)
        self.loop.num_snapshot_env_steps = self.env_steps
        # RLlib restores the learning rates with the optimisers; this puts back the run's own.
        self.learner_group.foreach_learner(lambda learner: learner.after_gradient_based_update(timesteps=timesteps))
        self.reset_environments()
        self._hold_session_if_due(start_step=0)
        self.loop.look_if_due(self.env_steps)

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
        """Step every environment for one fragment; return the episode pieces, which the pool has seen.

        Raises:
            RuntimeError: All env runners were lost, and none came back for half an hour.
        """
        self.start_from_reference()
        episodes = self._sample_pieces()
        began = time.monotonic()
        while not episodes:
            # RLlib itself looks after lost env runners between training steps only.
            if time.monotonic() > began + ENV_RUNNER_TIMEOUT_S:
                raise RuntimeError(
                    f"all {self.config.num_env_runners} env runners were lost, and none came back for "
                    f"{ENV_RUNNER_TIMEOUT_S / 60:.0f} min"
                )
            self.restore_env_runners(self.env_runner_group)
            time.sleep(ENV_RUNNER_WAIT_S)
            episodes = self._sample_pieces()
        for episode in episodes:
            self.loop.pool.add(to_chunk(episode))
        return episodes

    def _sample_pieces(self) -> list[Any]:
        """Step every environment of the env runners there are; nothing without any."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            episodes, results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                concat=True,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        return [episode for episode in episodes if len(episode)]

    def _timesteps(self) -> dict[str, Any]:
        return {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps}

    def _sync_weights(self) -> None:
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def step(self) -> Any:
        """Run one iteration of RLlib's and look at the reward model when that is due."""
        result = super().step()
        self.loop.look_if_due(self.env_steps)
        return result

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return RLlib's components and the loop, which is not there yet when RLlib's own set-up asks."""
        components = super().get_checkpointable_components()
        return components if self._loop is None else [*components, (COMPONENT_PREFERENCE_LOOP, self.loop)]

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
        self._needs_reference = False
        if COMPONENT_PREFERENCE_LOOP in state:
            self.loop.set_state(state[COMPONENT_PREFERENCE_LOOP])

    def cleanup(self) -> None:
        """End the reward actor with the algorithm."""
        try:
            if self._loop is not None and self._loop.reward_model is not None:
                self._loop.reward_model.stop()
        finally:
            super().cleanup()
