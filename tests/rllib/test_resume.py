"""Stopping and going on equals not stopping, and everything that is saved comes back bit for bit."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError

from themis_ray.config import load_config, resolve
from themis_ray.errors import CheckpointError, DataError
from themis_ray.experiment import _metrics
from themis_ray.randomness import seed_python
from themis_ray.rllib import PreferencePPO, PreferenceSAC, build_algorithm_config

SMALL = [
    "algorithm.hidden_sizes=[32,32]",
    "reward.hidden_sizes=[32,32]",
    "reward.num_epochs=5",
    "feedback.segment_length=20",
    "feedback.budget=30",
    "feedback.session_size=5",
    "seed=3",
]
SETTINGS = {
    "sac": [
        *SMALL,
        "env.id=Pendulum-v1",
        "num_env_steps=1200",
        "algorithm.batch_size=32",
        "exploration.num_seed_steps=100",
        "exploration.num_env_steps=100",
    ],
    "dqn": [
        *SMALL,
        "env.id=CartPole-v1",
        "algorithm.name=dqn",
        "num_env_steps=1200",
        "algorithm.batch_size=32",
        "exploration.num_seed_steps=100",
        "exploration.num_env_steps=100",
    ],
    "ppo": [
        *SMALL,
        "env.id=CartPole-v1",
        "num_env_steps=2000",
        "algorithm.batch_size=200",
        "algorithm.num_envs=4",
        "exploration.num_env_steps=200",
    ],
}
NUM_STEPS_BEFORE = {"sac": 500, "dqn": 500, "ppo": 800}


def build(name: str, folder: Path) -> Any:
    config, _ = resolve(load_config(None, SETTINGS[name]))
    seed_python(config.seed)
    return build_algorithm_config(config, folder).build_algo()


def train(algorithm: Any, num_iterations: int) -> list[dict[str, Any]]:
    return [_metrics(algorithm, algorithm.train()) for _ in range(num_iterations)]


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Compare nested states bit for bit; times and names that a run makes anew are left out."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        np.testing.assert_array_equal(left, right, where)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right or (left != left and right != right), where


def saved_parts(algorithm: Any) -> dict[str, Any]:
    state = algorithm.get_state()
    learner = state["learner_group"]["learner"]
    return {
        "weights": learner["rl_module"],
        "optimizer": learner["optimizer"],
        "loop": state["preference_loop"],
        "env_steps": algorithm.env_steps,
        "phase": algorithm.loop.phase(algorithm.env_steps),
    }


@pytest.mark.ray
@pytest.mark.parametrize("name", ["sac", "ppo", "dqn"])
def test_resumed_run_goes_on_like_one_that_never_stopped(name, tmp_path, ray_cluster):
    unstopped = build(name, tmp_path / "unstopped")
    while unstopped.env_steps < NUM_STEPS_BEFORE[name]:
        unstopped.train()
    assert unstopped.loop.dataset.num_preferences > 0
    assert unstopped.loop.reward_model.version > 0
    unstopped.save_to_path(str(tmp_path / "checkpoint"))
    expected = saved_parts(unstopped)
    unstopped.reset_environments()
    expected_rows = train(unstopped, 4)
    unstopped.stop()

    resumed = build(name, tmp_path / "resumed")
    random.seed(99)
    torch.manual_seed(99)
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert_same(saved_parts(resumed), expected)
    resumed.reset_environments()
    rows = train(resumed, 4)
    resumed.stop()
    assert expected_rows[-1]["queries_asked"] > expected_rows[0]["queries_asked"] - 1
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert_same(row, expected_row, f"metrics at {row['num_env_steps']} env steps")


@pytest.mark.ray
@pytest.mark.parametrize(("name", "algorithm_class"), [("sac", PreferenceSAC), ("ppo", PreferencePPO)])
def test_from_checkpoint_restores_the_loop_and_keeps_later_answers(name, algorithm_class, tmp_path, ray_cluster):
    algorithm = build(name, tmp_path / "run")
    while algorithm.loop.dataset.num_queries < 5:
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    weights = algorithm.get_state()["learner_group"]["learner"]["rl_module"]
    num_at_checkpoint = algorithm.loop.dataset.num_queries
    while algorithm.loop.dataset.num_queries == num_at_checkpoint:
        algorithm.train()
    answers = algorithm.loop.dataset.preferences
    algorithm.stop()

    restored = algorithm_class.from_checkpoint(str(tmp_path / "checkpoint"))
    try:
        assert_same(restored.get_state()["learner_group"]["learner"]["rl_module"], weights)
        assert restored.loop.dataset.preferences == answers, "answers given after the checkpoint were lost"
        version = restored.loop.reward_model.version
        restored.reset_environments()
        restored.train()
        assert restored.loop.reward_model.version > version, "later answers were not fitted"
        while restored.env_steps < restored.settings.num_env_steps:
            restored.train()
        assert restored.loop.dataset.num_queries == 30, "the budget was not kept"
        assert restored.loop.dataset.preferences[: len(answers)] == answers
    finally:
        restored.stop()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("the dataset has changed"), DataError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), OSError),
        (RayActorError(), RayActorError),
        (OSError(errno.EIO, os.strerror(errno.EIO)), CheckpointError),
        (KeyError("streams"), CheckpointError),
    ],
)
def test_a_checkpoint_is_blamed_only_for_what_is_wrong_with_it(error, expected, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(PreferencePPO, "restore_from_path", fail)
    algorithm = PreferencePPO.__new__(PreferencePPO)
    with pytest.raises(expected) as caught:
        algorithm.restore_checkpoint(tmp_path / "checkpoint_1", "Delete it.")
    if expected is CheckpointError:
        assert "checkpoint_1 cannot be read" in str(caught.value)
        assert str(caught.value).endswith("Delete it.")
    else:
        assert caught.value is error
