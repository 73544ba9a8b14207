"""Tune runs the same algorithm, with the reward actor inside the trial's placement group."""

import pytest
from ray import tune

from themis_ray.config import load_config, resolve
from themis_ray.rllib import PreferencePPO, build_algorithm_config

SETTINGS = [
    "env.id=CartPole-v1",
    "num_env_steps=2000",
    "algorithm.batch_size=200",
    "algorithm.num_envs=4",
    "algorithm.hidden_sizes=[16]",
    "reward.hidden_sizes=[16]",
    "reward.num_epochs=2",
    "feedback.budget=20",
    "feedback.session_size=10",
    "feedback.segment_length=10",
]


def algorithm_config(*settings: str):
    config, _ = resolve(load_config(None, [*SETTINGS, *settings]))
    return build_algorithm_config(config)


def test_the_reward_actor_has_a_bundle_of_its_own_where_there_is_one():
    learned = PreferencePPO.default_resource_request(algorithm_config("resources.reward_actor_num_cpus=0.25").to_dict())
    own = PreferencePPO.default_resource_request(algorithm_config("learn_reward=false").to_dict())
    assert learned.bundles == [*own.bundles, {"CPU": 0.25}]
    free = PreferencePPO.default_resource_request(algorithm_config("resources.reward_actor_num_cpus=0").to_dict())
    assert free.bundles == own.bundles


@pytest.mark.ray
def test_a_trial_trains_checkpoints_and_can_be_loaded(tmp_path, ray_cluster):
    space = algorithm_config().to_dict()
    results = tune.Tuner(
        PreferencePPO,
        param_space=space,
        run_config=tune.RunConfig(
            name="trial",
            storage_path=str(tmp_path),
            stop={"training_iteration": 3},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert results.num_errors == 0
    result = results[0]
    assert result.metrics["env_runners"]["num_env_steps_sampled_lifetime"] >= 500
    restored = PreferencePPO.from_checkpoint(result.checkpoint.path)
    try:
        assert restored.loop.dataset.num_queries >= 10
        assert restored.loop.reward_model.version >= 1
        assert restored.iteration == 3
    finally:
        restored.stop()
