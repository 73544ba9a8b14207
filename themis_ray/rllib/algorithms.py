"""From resolved settings to an RLlib configuration, one function per learner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from themis_ray.envs import EnvConfig, SeedEpisodes, make_env
from themis_ray.errors import ConfigError
from themis_ray.loop_settings import MAX_STEPS_BETWEEN_REPORTS, LoopSettings, required
from themis_ray.rllib.cpl import PreferenceCPLConfig
from themis_ray.rllib.modules import DQNModule, PPOModule, SACModule
from themis_ray.rllib.off_policy import PreferenceDQNConfig, PreferenceSACConfig
from themis_ray.rllib.ppo import PreferencePPOConfig

__all__ = ["build_algorithm_config"]

ENV_NAME = "themis_env"
NUM_PPO_ROUNDS = 4


def _make_env(context: Any) -> Any:
    return SeedEpisodes(make_env(EnvConfig(**context)), context.worker_index)


def _ppo_config(settings: LoopSettings) -> PreferencePPOConfig:
    algorithm = settings.algorithm
    num_envs = required(algorithm.num_envs) * max(1, settings.resources.num_env_runners)
    fragment, num_rounds = _ppo_rounds(required(algorithm.batch_size), num_envs)
    batch_size = fragment * num_envs * num_rounds // max(1, settings.resources.num_learners)
    config = PreferencePPOConfig()
    config.env_runners(rollout_fragment_length=fragment)
    config.training(
        train_batch_size_per_learner=batch_size,
        minibatch_size=min(required(algorithm.minibatch_size), batch_size),
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


def _ppo_rounds(batch_size: int, num_envs: int) -> tuple[int, int]:
    """Return the env steps of each environment in a round, and the rounds of a batch: about `NUM_PPO_ROUNDS`.

    A batch that the environments share evenly is kept to the step, so that one of whole episodes stays so.
    """
    steps_per_env = batch_size // num_envs
    if batch_size % num_envs == 0:
        divisors = [number for number in range(1, steps_per_env + 1) if steps_per_env % number == 0]
        num_rounds = min(divisors, key=lambda number: abs(number - NUM_PPO_ROUNDS))
        return steps_per_env // num_rounds, num_rounds
    fragment = max(1, round(batch_size / (num_envs * NUM_PPO_ROUNDS)))
    return fragment, max(1, round(batch_size / (fragment * num_envs)))


def _replay_config(settings: LoopSettings, config: Any) -> Any:
    algorithm = settings.algorithm
    runners = required(algorithm.num_envs) * max(1, settings.resources.num_env_runners)
    config.env_runners(rollout_fragment_length=max(1, round(required(algorithm.round_num_env_steps) / runners)))
    config.training(
        train_batch_size_per_learner=algorithm.batch_size,
        num_steps_sampled_before_learning_starts=0,
        n_step=1,
        tau=algorithm.tau,
        # RLlib's own buffer is built but never filled.
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 1},
    )
    return config


def _cpl_config(settings: LoopSettings) -> PreferenceCPLConfig:
    algorithm = settings.algorithm
    runners = required(algorithm.num_envs) * max(1, settings.resources.num_env_runners)
    config = PreferenceCPLConfig()
    # Nothing is learned from env steps, so they show the policy as it will be evaluated.
    config.env_runners(
        rollout_fragment_length=max(1, round(required(algorithm.round_num_env_steps) / runners)), explore=False
    )
    config.training(train_batch_size_per_learner=algorithm.batch_size)
    config.contrastive_alpha = required(algorithm.contrastive_alpha)
    config.conservative_bias = required(algorithm.conservative_bias)
    return config


def _model_config(settings: LoopSettings) -> dict[str, Any]:
    algorithm = settings.algorithm
    model: dict[str, Any] = {"hidden_sizes": list(required(algorithm.hidden_sizes))}
    if algorithm.reference is not None:
        model["has_reference"] = True
    if algorithm.name in ("sac", "dqn"):
        model["num_seed_steps"] = settings.exploration.num_seed_steps
    if algorithm.name == "sac":
        model["initial_alpha"] = algorithm.initial_alpha
    if algorithm.name == "dqn":
        model["final_epsilon"] = algorithm.final_epsilon
        model["epsilon_steps"] = int(required(algorithm.epsilon_share) * settings.num_env_steps)
    return model


def build_algorithm_config(settings: LoopSettings, dataset_path: Path | None = None) -> AlgorithmConfig:
    """Translate resolved settings into an RLlib configuration, ready for `build_algo()` or a Tune param space.

    Args:
        settings: With algorithm.name and every setting of that learner filled in (`themis_ray.config.resolve`).
        dataset_path: Folder of the preference dataset that the run writes; None puts it into the algorithm's own log
            folder. With `feedback.dataset` nothing is written.

    Raises:
        ConfigError: More than one learner is asked for where updates cannot be shared.
    """
    algorithm, resources = settings.algorithm, settings.resources
    if algorithm.name != "ppo" and resources.num_learners > 1:
        raise ConfigError(
            f"resources.num_learners={resources.num_learners} was given, but {algorithm.name} learns in one place. "
            "Set it to 0 or 1, or use algorithm.name=ppo."
        )
    modules: Mapping[str, Any] = {"ppo": PPOModule, "sac": SACModule, "dqn": DQNModule, "cpl": PPOModule}
    config: Any
    if algorithm.name == "ppo":
        config = _ppo_config(settings)
    elif algorithm.name == "cpl":
        config = _cpl_config(settings)
    else:
        config = _replay_config(settings, PreferenceSACConfig() if algorithm.name == "sac" else PreferenceDQNConfig())
    # Ray forgets names with the session that it was told them in, and a process may have several.
    register_env(ENV_NAME, _make_env)
    config.environment(ENV_NAME, env_config=settings.env.model_dump())
    config.env_runners(
        num_env_runners=resources.num_env_runners,
        num_envs_per_env_runner=algorithm.num_envs,
        num_cpus_per_env_runner=resources.num_cpus_per_env_runner,
        custom_resources_per_env_runner=resources.env_runner_custom_resources,
        episode_lookback_horizon=0,
    )
    config.learners(
        num_learners=resources.num_learners,
        num_gpus_per_learner=resources.num_gpus_per_learner,
        custom_resources_per_learner=resources.learner_custom_resources,
    )
    config.resources(custom_resources_for_main_process=resources.main_process_custom_resources)
    config.training(gamma=algorithm.gamma)
    rate: Any = algorithm.learning_rate
    if algorithm.anneal_learning_rate:
        rate = [[0, rate], [settings.num_env_steps, 0.0]]
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
    path = settings.feedback.dataset or dataset_path
    config.dataset_path = None if path is None else str(path)
    config.kl_coefficient = algorithm.kl_coefficient or 0.0
    return config
