"""What is learned: the reward ensemble, its fit to preferences, and the rewards of exploration."""

from themis_ray.reward.calibration import ReliabilityCurve, expected_calibration_error, reliability_curve
from themis_ray.reward.config import (
    DEFAULT_FROM_SCRATCH,
    DEFAULT_LABEL_MARGIN,
    DEFAULT_NUM_EPOCHS,
    REWARD_MODELS,
    REWARD_OPTIONS,
    RewardConfig,
)
from themis_ray.reward.ensemble import RewardEnsemble, left_probabilities
from themis_ray.reward.exploration import RunningStd, disagreement_bonus, optimistic_rewards, state_entropy_rewards
from themis_ray.reward.labels import UnlabelledPairs, unlabelled_pairs
from themis_ray.reward.likelihoods import teaches_anything
from themis_ray.reward.networks import EnsembleCNN, EnsembleMixed, EnsembleMLP
from themis_ray.reward.pixels import grid_stride, shrink, shrunk_sides
from themis_ray.reward.selection import accuracy
from themis_ray.reward.state import ensemble_state, load_ensemble_state, make_optimizer
from themis_ray.reward.training import fit
from themis_ray.reward.watch import RewardWatch, WatchPoint

__all__ = [
    "DEFAULT_FROM_SCRATCH",
    "DEFAULT_LABEL_MARGIN",
    "DEFAULT_NUM_EPOCHS",
    "REWARD_MODELS",
    "REWARD_OPTIONS",
    "EnsembleCNN",
    "EnsembleMLP",
    "EnsembleMixed",
    "ReliabilityCurve",
    "RewardConfig",
    "RewardEnsemble",
    "RewardWatch",
    "RunningStd",
    "UnlabelledPairs",
    "WatchPoint",
    "accuracy",
    "disagreement_bonus",
    "ensemble_state",
    "expected_calibration_error",
    "fit",
    "grid_stride",
    "left_probabilities",
    "load_ensemble_state",
    "make_optimizer",
    "optimistic_rewards",
    "reliability_curve",
    "shrink",
    "shrunk_sides",
    "state_entropy_rewards",
    "teaches_anything",
    "unlabelled_pairs",
]
