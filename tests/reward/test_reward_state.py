"""What is restored of a reward ensemble, and what the settings decide."""

import numpy as np
import torch
from gymnasium.spaces import Box

from themis_ray.reward import RewardConfig, RewardEnsemble, ensemble_state, load_ensemble_state, make_optimizer


def test_step_size_and_weight_decay_are_those_of_the_settings() -> None:
    def build(config: RewardConfig) -> tuple[RewardEnsemble, torch.optim.Adam]:
        ensemble = RewardEnsemble(Box(-1, 1, (3,)), Box(-1, 1, (1,)), "vector", config, seed=0)
        return ensemble, make_optimizer(ensemble, config)

    small = RewardConfig(hidden_sizes=(4,), learning_rate=1e-4)
    large = RewardConfig(hidden_sizes=(4,), learning_rate=1e-2, weight_decay=0.1)
    ensemble, optimizer = build(small)
    ensemble(torch.ones(5, 3), torch.ones(5, 1)).sum().backward()
    optimizer.step()
    other, its_optimizer = build(large)
    load_ensemble_state(other, its_optimizer, ensemble_state(ensemble, optimizer))
    (group,) = its_optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-2, 0.1)
    observations, actions = np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32)
    np.testing.assert_array_equal(other.predict(observations, actions), ensemble.predict(observations, actions))
    assert len(its_optimizer.state_dict()["state"]) == len(list(other.parameters()))
