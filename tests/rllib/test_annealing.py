"""The step size falls to 0 over the run, in every optimiser, and stays where it was after a stop."""

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from test_resume import SETTINGS

from themis_ray.config import load_config, resolve
from themis_ray.rllib import build_algorithm_config

LEARNING_RATE = 1e-3


def build(name, folder, anneal):
    overrides = [*SETTINGS[name], "learn_reward=false", f"algorithm.learning_rate={LEARNING_RATE}"]
    config, _ = resolve(load_config(None, [*overrides, f"algorithm.anneal_learning_rate={anneal}"]))
    return config, build_algorithm_config(config, folder).build_algo()


def step_sizes(algorithm):
    learner = algorithm.learner_group._learner
    return [
        group["lr"]
        for _, optimizer in learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
        for group in optimizer.param_groups
    ]


@pytest.mark.ray
@pytest.mark.parametrize("name", ["sac", "ppo", "dqn"])
def test_step_size_falls_linearly_to_zero_and_comes_back_after_a_stop(name, tmp_path, ray_cluster):
    config, algorithm = build(name, tmp_path / "first", "true")
    assert step_sizes(algorithm) == pytest.approx([LEARNING_RATE] * len(step_sizes(algorithm)))
    while algorithm.env_steps < config.num_env_steps // 2:
        algorithm.train()
    # RLlib counts what was sampled before the update, which is up to one round behind.
    expected = LEARNING_RATE * (1 - algorithm.env_steps / config.num_env_steps)
    assert step_sizes(algorithm) == pytest.approx([expected] * len(step_sizes(algorithm)), abs=0.12 * LEARNING_RATE)
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    before = step_sizes(algorithm)
    algorithm.stop()
    _, resumed = build(name, tmp_path / "second", "true")
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert step_sizes(resumed) == before
    while resumed.env_steps < config.num_env_steps:
        resumed.train()
    assert max(step_sizes(resumed)) < 0.12 * LEARNING_RATE
    resumed.stop()


@pytest.mark.ray
def test_step_size_stays_without_annealing(tmp_path, ray_cluster):
    config, algorithm = build("dqn", tmp_path, "false")
    while algorithm.env_steps < config.num_env_steps // 2:
        algorithm.train()
    assert step_sizes(algorithm) == [LEARNING_RATE]
    algorithm.stop()
