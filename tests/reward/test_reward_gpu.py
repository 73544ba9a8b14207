"""The reward ensemble on a CUDA device."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from themis_ray.data import LabelledPairs
from themis_ray.reward import RewardConfig, RewardEnsemble, fit, make_optimizer


@pytest.mark.gpu
def test_ensemble_predicts_and_fits_on_a_gpu_as_on_the_cpu():
    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)
    config = RewardConfig(num_epochs=3, target_accuracy=1.0)
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((40, 50, 17)).astype(np.float32)
    actions = rng.uniform(-1, 1, (40, 50, 6)).astype(np.float32)
    labels = rng.integers(0, 2, 20).astype(np.float32)
    pairs = LabelledPairs(observations, actions, np.arange(20), np.arange(20, 40), labels)
    predictions = []
    for device in ("cpu", "cuda"):
        ensemble = RewardEnsemble(observation_space, action_space, "vector", config, 0).to(torch.device(device))
        fit(ensemble, make_optimizer(ensemble, config), pairs, config, np.random.default_rng(1))
        predictions.append(ensemble.predict(observations.reshape(-1, 17), actions.reshape(-1, 6)))
    np.testing.assert_allclose(*predictions, atol=2e-3)
