"""A run from a snapshot: the exploration is shared, and what follows is the run's own."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from test_resume import SETTINGS, assert_same, train

from themis_ray.config import load_config, resolve
from themis_ray.errors import CheckpointError
from themis_ray.experiment import prepare_process, run_pretraining
from themis_ray.randomness import RandomStreams, seed_python
from themis_ray.rllib import ReplayBuffer, Transitions, build_algorithm_config
from themis_ray.snapshots import Snapshot, open_snapshot

SEED = 3


def pretrain(name: str, path: Path) -> Snapshot:
    config, _ = resolve(load_config(None, SETTINGS[name]))
    steps = list(run_pretraining(config, path))
    assert steps == sorted(set(steps))
    return open_snapshot(path)


def build(name: str, folder: Path, *overrides: str) -> Any:
    prepare_process()
    config, _ = resolve(load_config(None, [*SETTINGS[name], *overrides]))
    seed_python(config.seed)
    return build_algorithm_config(config, folder).build_algo()


def start(name: str, folder: Path, snapshot: Snapshot, *overrides: str) -> Any:
    algorithm = build(name, folder, *overrides)
    torch.manual_seed(99)
    algorithm.start_from_snapshot(snapshot.checkpoint_path, snapshot.config.seed)
    return algorithm


def weights(algorithm: Any) -> dict[str, np.ndarray]:
    return algorithm.get_state()["learner_group"]["learner"]["rl_module"]["default_policy"]


def explored_weights(name: str, folder: Path, snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Returns what exploration left behind."""
    explored = build(name, folder)
    explored.restore_from_path(str(snapshot.checkpoint_path))
    found = weights(explored)
    explored.stop()
    return found


def optimizers(algorithm: Any) -> dict[str, Any]:
    return algorithm.get_state()["learner_group"]["learner"]["optimizer"]


def names_that_differ(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> set[str]:
    assert left.keys() == right.keys()
    return {name.split(".")[0] for name in left if not np.array_equal(left[name], right[name])}


@pytest.mark.ray
@pytest.mark.parametrize("name", ["sac", "ppo", "dqn"])
def test_with_the_same_seed_it_goes_on_like_a_run_that_did_not_stop(name: str, tmp_path: Path, ray_cluster) -> None:
    unstopped = build(name, tmp_path / "unstopped")
    while unstopped.env_steps < unstopped.loop.num_steps_before_feedback:
        unstopped.train()
    assert unstopped.loop.reward_model.version == 1
    unstopped.reset_environments()
    expected_rows = train(unstopped, 4)
    expected = (weights(unstopped), optimizers(unstopped), unstopped.loop.get_state())
    unstopped.stop()

    snapshot = pretrain(name, tmp_path / "snapshot")
    started = start(name, tmp_path / "run", snapshot)
    assert started.env_steps == snapshot.num_env_steps
    rows = train(started, 4)
    found = (weights(started), optimizers(started), started.loop.get_state())
    started.stop()
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert_same(row, expected_row, f"metrics at {row['num_env_steps']} env steps")
    assert rows[-1]["num_env_steps"] > rows[0]["num_env_steps"] > snapshot.num_env_steps
    assert rows[-1]["queries_asked"] > 0
    assert_same(found[:2], expected[:2])
    for part in ("streams", "replay", "reward_model", "intrinsic_std", "num_updates_owed"):
        assert_same(found[2][part], expected[2][part], part)


@pytest.mark.ray
def test_runs_with_other_seeds_share_the_exploration_and_differ_after_it(tmp_path: Path, ray_cluster) -> None:
    snapshot = pretrain("sac", tmp_path / "snapshot")
    runs = [start("sac", tmp_path / f"run{seed}", snapshot, f"seed={seed}") for seed in (8, 9)]
    for run, seed in zip(runs, (8, 9), strict=True):
        assert run.env_steps == snapshot.num_env_steps == run.loop.num_snapshot_env_steps
        assert run.loop.phase(run.env_steps) == "preference"
        assert run.loop.reward_model.version == 1, "the first session was not held"
        fresh, unused = RandomStreams(seed), run.loop.streams
        assert "exploration" not in unused.get_state()
        assert fresh["replay"].bit_generator.state == unused["replay"].bit_generator.state
    first, second = runs
    one, other = weights(first), weights(second)
    assert names_that_differ(one, other) == {"critics", "target_critics"}, "critics are drawn anew, from the run's seed"
    columns, other_columns = first.replay.get_state(), second.replay.get_state()
    for column in ("observations", "next_observations", "actions", "true_rewards", "terminated", "position"):
        assert_same(columns[column], other_columns[column], column)
    assert len(columns["true_rewards"]) == snapshot.num_env_steps
    asked = [{query.query_id for query in run.loop.dataset.preferences} for run in runs]
    assert not asked[0] & asked[1], "both asked the same queries"
    for run in runs:
        train(run, 2)  # the replay takes a round when the next one is sampled
    num_shared = snapshot.num_env_steps
    assert first.replay.size == second.replay.size > num_shared
    assert not np.array_equal(first.replay.observations[num_shared:], second.replay.observations[num_shared:])
    assert names_that_differ(weights(first), weights(second)) >= {"pi", "pi_encoder"}
    for run in runs:
        run.stop()


@pytest.mark.ray
def test_ppo_forgets_the_values_of_exploration(tmp_path: Path, ray_cluster) -> None:
    snapshot = pretrain("ppo", tmp_path / "snapshot")
    before = explored_weights("ppo", tmp_path / "explored", snapshot)
    for reward in ("true", "false"):
        run = start("ppo", tmp_path / reward, snapshot, f"learn_reward={reward}")
        assert names_that_differ(weights(run), before) == {"vf", "vf_encoder"}
        learner = run.learner_group._learner
        ((_, optimizer),) = learner.get_optimizers_for_module("default_policy")
        remembered = {
            name.split(".")[0]
            for name, parameter in learner.module["default_policy"].unwrapped().named_parameters()
            if parameter in optimizer.state
        }
        assert remembered == {"pi", "pi_encoder"}
        run.stop()


@pytest.mark.ray
def test_learning_rate_and_reward_are_the_runs_own(tmp_path: Path, ray_cluster) -> None:
    snapshot = pretrain("sac", tmp_path / "snapshot")
    before = explored_weights("sac", tmp_path / "explored", snapshot)
    run = start("sac", tmp_path / "run", snapshot, "algorithm.learning_rate=0.01", "learn_reward=false")
    rates = {group["lr"] for state in optimizers(run).values() for group in state["state"]["param_groups"]}
    assert {float(rate) for rate in rates} == {0.01}
    # Without sessions the critics are forgotten too, once.
    assert names_that_differ(weights(run), before) == {"critics", "target_critics"}
    after = weights(run)
    critic = dict(zip(*np.unique([n.split(".")[0] for n in after], return_counts=True), strict=True))
    assert critic["critics"] == critic["target_critics"]
    train(run, 1)
    assert run.loop.reward_model is None
    run.stop()


@pytest.mark.ray
def test_a_checkpoint_that_cannot_be_restored_is_refused_in_one_line(tmp_path: Path, ray_cluster) -> None:
    algorithm = build("sac", tmp_path / "run", "learn_reward=false")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "algorithm_state.pkl").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        algorithm.start_from_snapshot(tmp_path / "checkpoint", SEED)
    assert "themis pretrain" in str(caught.value)
    algorithm.stop()


def transitions(numbers: range) -> Transitions:
    column = np.array(numbers, np.float32)
    return Transitions(column[:, None], column[:, None] + 1, column.astype(np.int64), column, column % 2 == 0)


@given(num_rows=st.integers(0, 12), capacity=st.integers(1, 6), other=st.integers(1, 6), num_later=st.integers(0, 8))
def test_a_replay_of_another_capacity_keeps_the_newest_rows_and_their_order(
    num_rows: int, capacity: int, other: int, num_later: int
) -> None:
    spaces = (Box(-np.inf, np.inf, (1,), np.float32), Discrete(50))
    source, target = ReplayBuffer(capacity, *spaces), ReplayBuffer(other, *spaces)
    kept: deque[int] = deque(maxlen=capacity)
    for i in range(num_rows):
        source.add(transitions(range(i, i + 1)), np.full(1, i, np.float32))
        kept.append(i)
    target.set_state(source.get_state())
    kept = deque(kept, maxlen=other)
    for i in range(num_rows, num_rows + num_later):
        target.add(transitions(range(i, i + 1)), np.full(1, i, np.float32))
        kept.append(i)
    assert target.size == len(kept)
    assert sorted(target.actions[: target.size]) == sorted(kept)
    for column in (target.observations[:, 0], target.true_rewards, target.predicted_rewards):
        np.testing.assert_array_equal(column[: target.size], target.actions[: target.size])
