"""What is learned: the reward ensemble, its fit to preferences, and the reward of unsupervised exploration."""

from themis_ray.reward.ensemble import DEFAULT_NUM_EPOCHS, RewardConfig, RewardEnsemble, left_probabilities
from themis_ray.reward.exploration import RunningStd, state_entropy_rewards
from themis_ray.reward.networks import EnsembleCNN, EnsembleMLP
from themis_ray.reward.training import accuracy, ensemble_state, fit, load_ensemble_state, make_optimizer

__all__ = [
    "DEFAULT_NUM_EPOCHS",
    "EnsembleCNN",
    "EnsembleMLP",
    "RewardConfig",
    "RewardEnsemble",
    "RunningStd",
    "accuracy",
    "ensemble_state",
    "fit",
    "left_probabilities",
    "load_ensemble_state",
    "make_optimizer",
    "state_entropy_rewards",
]
