"""The reward ensemble on a CUDA device."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from themis_ray.data import LabelledPairs
from themis_ray.reward import RewardConfig, RewardEnsemble, UnlabelledPairs, fit, make_optimizer

OPTIONS = {
    "temporal_crop": 10,
    "filter_wrong_labels": True,
    "pseudo_label_threshold": 0.9,
    "heldout_share": 0.2,
    "early_stop_patience": 3,
}


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_ensemble_predicts_and_fits_on_a_gpu_as_on_the_cpu(options):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)
    config = RewardConfig(num_epochs=3, target_accuracy=1.0, **options)
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((40, 50, 17)).astype(np.float32)
    actions = rng.uniform(-1, 1, (40, 50, 6)).astype(np.float32)
    labels = rng.integers(0, 2, 20).astype(np.float32)
    weights = rng.uniform(0.5, 2, 20).astype(np.float32) if options else np.ones(20, np.float32)
    left, right = np.arange(20), np.arange(20, 40)
    pairs = LabelledPairs(observations, actions, left, right, labels, weights)
    unlabelled = UnlabelledPairs(observations, actions, right, left)
    predictions = []
    for device in ("cpu", "cuda"):
        ensemble = RewardEnsemble(observation_space, action_space, "vector", config, 0).to(torch.device(device))
        optimizer, shuffles = make_optimizer(ensemble, config), np.random.default_rng(1)
        fit(ensemble, optimizer, pairs, config, shuffles, unlabelled=unlabelled)
        ensemble.bonus = 0.1 if options else 0.0
        predictions.append(ensemble.predict(observations.reshape(-1, 17), actions.reshape(-1, 6)))
    np.testing.assert_allclose(*predictions, atol=2e-3)
