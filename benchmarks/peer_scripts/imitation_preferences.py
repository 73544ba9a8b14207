"""HumanCompatibleAI `imitation`: its preference comparisons, for `python -m benchmarks.peers`.

Runs in the virtual environment of `requirements-imitation.txt`, never in ours, and prints one JSON line at the end.
`imitation_sac` is set as near to our default as the library's API allows; `imitation_ppo` is its own tutorial's setting
(docs/tutorials/5_train_preference_comparisons), trained for as many steps as are asked for.
`num_env_steps` counts every environment step; `num_learner_steps` leaves out those that the library takes only to have
something to ask about. `imitation_sac` keeps the first to what was asked, `imitation_ppo` the second: its sessions
alone request 100 000 transitions for 500 labels.
"""

import math
from functools import partial

import numpy as np
import torch
from imitation.algorithms import preference_comparisons as pc
from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
from imitation.policies.replay_buffer_wrapper import ReplayBufferRewardWrapper
from imitation.rewards.reward_nets import BasicRewardNet, NormalizedRewardNet, RewardEnsemble, RewardNet
from imitation.util import logger as imitation_logger
from imitation.util.networks import RunningNorm
from imitation.util.util import make_vec_env
from sb3_baseline import ENV_ID, ZOO_SAC, Stopwatch, count_steps, parse_arguments, policy_optimizer, print_result
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn

EPISODE_LENGTH = 200
INITIAL_COMPARISON_FRACTION = 0.1

SAC_FRAGMENT_LENGTH = 50
SAC_NUM_ROUNDS = 10  # feedback sessions, the first one included
# imitation has no early stop; these passes bring the members to about the 97 % accuracy at which ours stop
SAC_REWARD_EPOCHS = 10
SAC_INITIAL_EPOCH_MULTIPLIER = 10.0

PPO_FRAGMENT_LENGTH = 100
PPO_NUM_ITERATIONS = 5
PPO_ROLLOUT_LENGTH = 2048


class StepCounter(VecEnvWrapper):
    """Counts the environment steps that are taken, whoever takes them."""

    num_env_steps = 0

    def reset(self) -> np.ndarray:
        """Passes on; a reset is not a step."""
        return self.venv.reset()

    def step_wait(self) -> tuple:
        """Counts one step per sub-environment and passes on."""
        self.num_env_steps += self.num_envs
        return self.venv.step_wait()


def make_ensemble(venv: VecEnv) -> RewardEnsemble:
    """Three members of 3x256 LeakyReLU on state and action, normalised as in imitation's own ensemble preset."""
    members: list[RewardNet] = [
        NormalizedRewardNet(
            BasicRewardNet(
                venv.observation_space, venv.action_space, hid_sizes=(256, 256, 256), activation=nn.LeakyReLU
            ),
            RunningNorm,
        )
        for _ in range(3)
    ]
    return RewardEnsemble(venv.observation_space, venv.action_space, members)


def build_sac(
    venv: VecEnv, seed: int, rng: np.random.Generator, logger: imitation_logger.HierarchicalLogger
) -> tuple[BaseAlgorithm, pc.PreferenceComparisons, pc.EnsembleTrainer]:
    """SAC, a reward ensemble, an oracle, disagreement sampling, the replay relabelled as it is sampled."""
    ensemble = make_ensemble(venv)
    agent = SAC(
        "MlpPolicy",
        venv,
        seed=seed,
        device="cpu",
        replay_buffer_class=ReplayBufferRewardWrapper,
        replay_buffer_kwargs={
            "replay_buffer_class": ReplayBuffer,
            "reward_fn": partial(ensemble.predict_processed, update_stats=False),
        },
        **ZOO_SAC,
    )
    model = pc.PreferenceModel(ensemble)
    trainer = pc.EnsembleTrainer(
        model, pc.CrossEntropyRewardLoss(), rng=rng, batch_size=128, epochs=SAC_REWARD_EPOCHS, lr=3e-4
    )
    comparisons = pc.PreferenceComparisons(
        pc.AgentTrainer(algorithm=agent, reward_fn=ensemble, venv=venv, rng=rng, custom_logger=logger),
        ensemble,
        num_iterations=SAC_NUM_ROUNDS - 1,
        fragmenter=pc.ActiveSelectionFragmenter(
            preference_model=model,
            base_fragmenter=pc.RandomFragmenter(warning_threshold=0, rng=rng),
            fragment_sample_factor=10,
            uncertainty_on="probability",
        ),
        preference_gatherer=pc.SyntheticGatherer(temperature=0, rng=rng),
        reward_trainer=trainer,
        fragment_length=SAC_FRAGMENT_LENGTH,
        initial_comparison_frac=INITIAL_COMPARISON_FRACTION,
        initial_epoch_multiplier=SAC_INITIAL_EPOCH_MULTIPLIER,
        query_schedule="constant",
        custom_logger=logger,
    )
    return agent, comparisons, trainer


def sac_total_timesteps(num_env_steps: int, num_labels: int) -> int:
    """The `total_timesteps` that makes `imitation` take `num_env_steps` in all.

    It plays whole episodes for the first session on top of that number, and then trains one round more than
    `num_iterations`, each as long as the others.
    """
    num_first = int(num_labels * INITIAL_COMPARISON_FRACTION) * 2 * SAC_FRAGMENT_LENGTH
    num_first = math.ceil(num_first / EPISODE_LENGTH) * EPISODE_LENGTH
    return (num_env_steps - num_first) // SAC_NUM_ROUNDS * (SAC_NUM_ROUNDS - 1)


def build_ppo(
    venv: VecEnv, seed: int, rng: np.random.Generator, logger: imitation_logger.HierarchicalLogger
) -> tuple[BaseAlgorithm, pc.PreferenceComparisons, pc.BasicRewardTrainer]:
    """The tutorial's PPO, single reward network, noisy teacher and random pairs."""
    network = BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm)
    agent = PPO(
        FeedForward32Policy,
        venv,
        policy_kwargs={
            "features_extractor_class": NormalizeFeaturesExtractor,
            "features_extractor_kwargs": {"normalize_class": RunningNorm},
        },
        seed=seed,
        device="cpu",
        n_steps=PPO_ROLLOUT_LENGTH // venv.num_envs,
        batch_size=64,
        ent_coef=0.01,
        learning_rate=2e-3,
        clip_range=0.1,
        gae_lambda=0.95,
        gamma=0.97,
        n_epochs=10,
    )
    trainer = pc.BasicRewardTrainer(pc.PreferenceModel(network), pc.CrossEntropyRewardLoss(), rng=rng, epochs=3)
    comparisons = pc.PreferenceComparisons(
        pc.AgentTrainer(
            algorithm=agent, reward_fn=network, venv=venv, exploration_frac=0.05, rng=rng, custom_logger=logger
        ),
        network,
        num_iterations=PPO_NUM_ITERATIONS,
        fragmenter=pc.RandomFragmenter(warning_threshold=0, rng=rng),
        preference_gatherer=pc.SyntheticGatherer(rng=rng),
        reward_trainer=trainer,
        fragment_length=PPO_FRAGMENT_LENGTH,
        transition_oversampling=1,
        initial_comparison_frac=INITIAL_COMPARISON_FRACTION,
        initial_epoch_multiplier=4,
        query_schedule="hyperbolic",
        custom_logger=logger,
    )
    return agent, comparisons, trainer


def ppo_total_timesteps(num_env_steps: int) -> int:
    """The `total_timesteps` that makes PPO train on about `num_env_steps`: whole rollouts, one round too many."""
    num_rollouts = max(1, num_env_steps // ((PPO_NUM_ITERATIONS + 1) * PPO_ROLLOUT_LENGTH))
    return num_rollouts * PPO_ROLLOUT_LENGTH * PPO_NUM_ITERATIONS


def main() -> None:
    arguments = parse_arguments(["imitation_sac", "imitation_ppo"])
    is_sac = arguments.system == "imitation_sac"
    torch.manual_seed(arguments.seed)
    stopwatch = Stopwatch()
    rng = np.random.default_rng(arguments.seed)
    venv = StepCounter(make_vec_env(ENV_ID, rng=rng, n_envs=1 if is_sac else 8))
    logger = imitation_logger.configure(format_strs=())
    if is_sac:
        agent, comparisons, trainer = build_sac(venv, arguments.seed, rng, logger)
        total_timesteps = sac_total_timesteps(arguments.num_env_steps, arguments.num_labels)
    else:
        agent, comparisons, trainer = build_ppo(venv, arguments.seed, rng, logger)
        total_timesteps = ppo_total_timesteps(arguments.num_env_steps)
    num_updates = count_steps([policy_optimizer(agent)])
    num_reward_updates = count_steps([member.optim for member in getattr(trainer, "member_trainers", [trainer])])
    final = comparisons.train(total_timesteps, arguments.num_labels, callback=lambda _: stopwatch.evaluate(agent))
    print_result(
        agent,
        stopwatch,
        packages=["imitation"],
        num_env_steps=venv.num_env_steps,
        num_learner_steps=agent.num_timesteps,
        reward_accuracy=float(final["reward_accuracy"]),
        num_labels=len(comparisons.dataset),
        num_updates=num_updates(),
        num_reward_updates=num_reward_updates(),
    )


if __name__ == "__main__":
    main()
